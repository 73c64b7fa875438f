"""How processes reach each other: TLS with a certificate on both sides, or plain text where
nobody can listen.

Certificates are looked for anew with every handshake of a server and every second by a
client, so that new ones are used without a restart; connections that are open stay.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509

from mesh.clock import NANOSECONDS, SYSTEM, Clock
from mesh.errors import FailedPrecondition
from mesh.rpc.settings import TlsSettings
from mesh.security.certificate_files import CertificateFiles, Held
from mesh.security.spiffe import parse_process_id, server_name
from mesh.sockets import is_loopback, stays_here

PARSED_MAX = 1_000


class Transport:
    """What servers listen with and channels connect with. Without `files` that is plain text,
    which leaves this machine with `plain_text` only."""

    def __init__(
        self,
        files: CertificateFiles | None = None,
        *,
        plain_text: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        self._files = files
        self._plain_text = plain_text
        self._clock = clock
        self._trust_domain = files.held().holder.trust_domain if files is not None else ""
        self._expire_times: dict[bytes, datetime] = {}

    @property
    def encrypted(self) -> bool:
        """Whether it is TLS."""
        return self._files is not None

    @property
    def plain_text(self) -> bool:
        """Whether it leaves this machine in plain text."""
        return self._files is None and self._plain_text

    @property
    def trust_domain(self) -> str:
        """The one that processes prove themselves in; empty without TLS."""
        return self._trust_domain

    @property
    def spiffe_id(self) -> str:
        """Who this process is to others; empty without TLS."""
        return str(self._files.held().holder) if self._files is not None else ""

    @property
    def folder(self) -> Path | None:
        """Where the certificate lies; None without TLS."""
        return self._files.folder if self._files is not None else None

    @property
    def bundle_file(self) -> Path | None:
        """The roots by which clients know this server; None without TLS."""
        return self._files.bundle_file if self._files is not None else None

    def held(self) -> Held | None:
        """The certificate as it is now, the same object until it changes; None without TLS."""
        return self._files.held() if self._files is not None else None

    def check_listening(self, host: str) -> None:
        """FailedPrecondition where others could read what is sent to `host`."""
        if not (self.encrypted or self._plain_text or is_loopback(host)):
            raise FailedPrecondition(
                f"{host} isn't on this machine alone, and nothing encrypts what is sent there:"
                " `weft ca init`, `weft ca issue` and WEFT_TLS_CERTIFICATE_DIR set up TLS;"
                " WEFT_TLS_PLAIN_TEXT=1 goes without, on a network that you trust"
            )

    def check_serving(self, services: Iterable[str]) -> None:
        """FailedPrecondition where the certificate isn't that of a process with the services:
        nobody would call them here."""
        if self._files is None:
            return
        holder = self._files.held().holder
        wrong = [each for each in services if not holder.may_act_as(each)]
        if wrong:
            raise FailedPrecondition(
                f"the certificate in {self._files.folder} is that of {holder}, which"
                f" isn't a process with {', '.join(wrong)}: `weft ca issue SERVICE...` makes one"
            )

    def listen(self, server: grpc.aio.Server, address: str, *, processes: bool) -> int:
        """Has the server listen on `address`; returns the port. With `processes` those who
        connect must have a certificate of this deployment, else none is asked for: gRPC for
        Python can't ask for one and go on without. RuntimeError where the port is taken."""
        credentials = self.server_credentials(processes=processes)
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)

    def server_credentials(self, *, processes: bool) -> grpc.ServerCredentials | None:
        """What `listen` listens with; None for plain text."""
        if self._files is None:
            return None
        configured: list[Held] = [self._files.held()]

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            assert self._files is not None
            held = self._files.held()
            if held is configured[0]:
                return None
            configured[0] = held
            return _configuration(held)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(configured[0]),
            renewed,  # type: ignore[arg-type] # None is for what hasn't changed
            require_client_authentication=processes,
        )

    def channel(
        self, target: str, service: str, options: Sequence[tuple[str, Any]]
    ) -> grpc.aio.Channel:
        """A channel to a process in which `service` runs: a server at `target` that doesn't
        prove that isn't called. FailedPrecondition where others could read what is sent."""
        held = self.held()
        if held is None:
            if not (self._plain_text or stays_here(target)):
                raise FailedPrecondition(
                    f"{target} isn't called in plain text: it is on another machine;"
                    " WEFT_TLS_CERTIFICATE_DIR sets up TLS"
                )
            return grpc.aio.insecure_channel(target, options=options)
        # Compared with the names in the server's certificate: its SPIFFE ID can't be, here.
        name = ("grpc.ssl_target_name_override", server_name(service, held.holder.trust_domain))
        credentials = grpc.ssl_channel_credentials(held.bundle, held.key, held.certificate)
        return grpc.aio.secure_channel(target, credentials, options=[*options, name])

    def acts_as(self, context: Any) -> Callable[[str], bool] | None:
        """For a call that arrived: what says whether its peer may act as a service. None in
        plain text, where nobody proves anything."""
        if self._files is None:
            return None
        # Not the context itself: while that lives, its stream counts for the connection.
        proven = context.auth_context()
        ids, certificates = proven.get("peer_spiffe_id", ()), proven.get("x509_pem_cert", ())
        if len(ids) != 1 or len(certificates) != 1:
            return _nobody
        process = parse_process_id(ids[0].decode(errors="replace"))
        if process is None or process.trust_domain != self._trust_domain:
            return _nobody
        # TLS looked at the handshake only; the connection may be older than its certificate.
        now = datetime.fromtimestamp(self._clock.now_ns() / NANOSECONDS, UTC)
        return process.may_act_as if now < self._expire_time(certificates[0]) else _nobody

    def _expire_time(self, certificate: bytes) -> datetime:
        found = self._expire_times.get(certificate)
        if found is None:
            if len(self._expire_times) >= PARSED_MAX:
                self._expire_times.clear()
            found = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
            self._expire_times[certificate] = found
        return found


PLAIN = Transport()
"""Plain text that stays on this machine."""


def transport_of(settings: TlsSettings) -> Transport:
    """The transport that the settings describe. FailedPrecondition where the certificate
    can't be used."""
    if settings.certificate_dir is None:
        return Transport(plain_text=settings.plain_text)
    return Transport(CertificateFiles(settings.certificate_dir))


def _nobody(service: str) -> bool:
    return False


def _configuration(held: Held) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(held.key, held.certificate)], held.bundle)
