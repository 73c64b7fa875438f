"""The connection of one command to the server."""

import os
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from mesh.cli.access import Access, Named, known_elsewhere, refuse_left_behind
from mesh.cli.address import Address
from mesh.cli.credentials import Credential, key_notes
from mesh.cli.failures import (
    CommandFailed,
    ExitCode,
    from_rpc_error,
    is_unauthenticated,
    is_unimplemented,
    is_unreached,
)
from mesh.cli.names import DEFAULT_TENANT
from mesh.cli.output import Output, note

if TYPE_CHECKING:
    import grpc

THREADS_SECONDS_MAX = 1.0

S = TypeVar("S")
Q_contra = TypeVar("Q_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
Q = TypeVar("Q")
R = TypeVar("R")

CALL_SECONDS = 30.0
"""Deadline of a unary call where no --timeout is given."""

RECEIVE_BYTES_MAX = 64 * 1024 * 1024

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    # A server that is killed and started again is found again at once, and one that
    # vanished without a word is noticed.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, also how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


def silence_grpc() -> None:
    """Keeps gRPC's own log from writing lines about lost connections between ours; to be
    called before grpc is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class UnaryMethod(Protocol[Q_contra, R_co]):
    """A method of a generated stub that answers once."""

    def __call__(self, request: Q_contra, /, timeout: float | None = None) -> R_co: ...


class Client:
    """The server, as one command sees it.

    `find` says which server that is, and as whom it is called; it is asked once, when
    the first of it is needed. `named` is what the command line says of it.
    `timeout_seconds`, where given, bounds the whole command from here on. As a context
    manager it closes the channel, and turns the error of an RPC into the CommandFailed
    that says it in words.
    """

    def __init__(
        self,
        find: Callable[[], Access],
        output: Output,
        timeout_seconds: float | None,
        named: Named | None = None,
    ) -> None:
        self._find = find
        self.named = named or Named()
        self.output = output
        self.timeout_seconds = timeout_seconds
        self._threads_before = frozenset(threading.enumerate())
        self._end = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if "channel" not in self.__dict__:
            return False
        import grpc

        self.channel.close()
        self._end_threads()
        if isinstance(error, grpc.RpcError):
            raise self.failure(error) from error
        return False

    def _end_threads(self) -> None:
        """Waits for gRPC's threads, which end behind their channel. One that Python stops while
        it holds the lock of a call leaves that locked, and the process would never end."""
        deadline = time.monotonic() + THREADS_SECONDS_MAX
        mine = {*self._threads_before, threading.current_thread()}
        for thread in threading.enumerate():
            if thread.daemon and thread not in mine:
                thread.join(max(0.0, deadline - time.monotonic()))

    def failure(self, error: "grpc.RpcError") -> CommandFailed:
        """What the error of an RPC is in words."""
        if is_unreached(error):
            from mesh.cli.encryption import misunderstood

            if failure := misunderstood(self.address.target, self.ca_file):
                return failure
        failure = from_rpc_error(error, self.address.target)
        if is_unreached(error):
            failure.notes += known_elsewhere(self.address.target)
        if is_unauthenticated(error):
            failure.notes += key_notes(self.credential, self.address.target)
        return failure

    @cached_property
    def _access(self) -> Access:
        return self._find()

    @property
    def address(self) -> Address:
        """Where the server is. CommandFailed where that can't be told."""
        return self._access.address

    @cached_property
    def credential(self) -> Credential | None:
        """What every call carries; None where no key was found. CommandFailed where there
        is one that can't be used."""
        return self._access.find_credential()

    @property
    def sendable_credential(self) -> Credential | None:
        """The credential, where it may be sent to the server. CommandFailed where it could
        be read on its way."""
        credential, access = self.credential, self._access
        private = access.ca_file is not None or access.address.is_loopback
        if credential is None or private or access.plain_text:
            return credential
        raise _would_be_read(access.address, credential)

    @property
    def ca_file(self) -> Path | None:
        """The roots by which the server is known; None where it is called in plain text."""
        return self._access.ca_file

    def _roots(self, file: Path) -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise CommandFailed(f"can't read the roots in {file}: {error.strerror}") from error

    @cached_property
    def parent(self) -> str:
        """The tenant that names are in, as `tenants/{tenant}`: the one that was named, else
        the key's own, which the server is asked for. RpcError where it doesn't answer."""
        if self._access.tenant:
            return self._access.tenant
        return self._own_tenant() if self.credential is not None else DEFAULT_TENANT

    def _own_tenant(self) -> str:
        import grpc

        from weft.auth.v1 import auth_service_pb2
        from weft.auth.v1.auth_service_pb2_grpc import AuthServiceStub

        try:
            request = auth_service_pb2.WhoAmIRequest()
            answer = self.call(self.stub(AuthServiceStub).WhoAmI, request)
        except grpc.RpcError as error:
            if not is_unimplemented(error):
                raise
            return DEFAULT_TENANT
        return answer.tenant or DEFAULT_TENANT

    @cached_property
    def channel(self) -> "grpc.Channel":
        """The channel to the server, whose calls all carry the credential; it connects
        with its first call. CommandFailed where the credential mustn't be sent there."""
        silence_grpc()
        import grpc

        credential, address = self.sendable_credential, self.address
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not address.is_loopback))]
        if self.ca_file is not None:
            encryption = grpc.ssl_channel_credentials(self._roots(self.ca_file))
            channel = grpc.secure_channel(address.target, encryption, options=options)
        else:
            channel = grpc.insecure_channel(address.target, options=options)
        if credential is None:
            return channel
        from mesh.cli.bearer import Bearer

        check = partial(refuse_left_behind, address)
        return grpc.intercept_channel(channel, Bearer(credential, check))

    def reconnect(self) -> None:
        """Gives the next stub a connection of its own, to where the server is by now; this
        one is closed. Says so where the server has moved."""
        if "channel" in self.__dict__:
            self.channel.close()
            del self.channel
        before = self._access
        found = self._found_again(before)
        if found is None:
            return
        self._access = found
        self.__dict__.pop("credential", None)
        if found.address.target != before.address.target:
            note(f"Weft is at {found.address.target} now.")

    def _found_again(self, before: Access) -> Access | None:
        """The server that was started in the place of the one that left its address; None
        where there is none, or the address is none that a server left."""
        if before.address.running is None:
            return None
        try:
            found = self._find()
        except CommandFailed:
            # Its folder has no server just now.
            return None
        address = found.address
        # A context may have been changed meanwhile, and mean another server.
        same = (address.source, found.tenant) == (before.address.source, before.tenant)
        if not same or address.running in (None, before.address.running):
            return None
        return found

    def another(self) -> "Client":
        """A connection of its own to the same server, under the same --timeout: for a thread
        that loses and attaches again without disturbing this one."""
        made = Client(self._find, self.output, self.timeout_seconds, self.named)
        made._access = self._access
        made._end = self._end
        return made

    def stub(self, stub_class: Callable[[Any], S]) -> S:
        """A generated stub on this connection."""
        return stub_class(self.channel)

    def call(self, method: UnaryMethod[Q, R], request: Q, seconds: float = CALL_SECONDS) -> R:
        """Calls a unary method; `seconds` is its deadline where no --timeout is given."""
        return method(request, timeout=self.remaining_seconds(seconds))

    def remaining_seconds(self, default: float) -> float:
        """What is left of --timeout, or `default` where none is given. CommandFailed once
        nothing is left."""
        if self._end is None:
            return default
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise CommandFailed(
                f"not done within {self.timeout_seconds:g} s", exit_code=ExitCode.DEADLINE
            )
        return remaining

    def extend(self, seconds: float) -> None:
        """Gives a command with a --timeout that many seconds more."""
        if self._end is not None:
            self._end += seconds


def _would_be_read(address: Address, credential: Credential) -> CommandFailed:
    port = address.target.rpartition(":")[2]
    return CommandFailed(
        f"the key isn't sent to {address.target}: that connection isn't encrypted",
        exit_code=ExitCode.AUTHENTICATION,
        notes=[
            f"Whoever is on the way could read the {credential.label}, from {credential.source}.",
            "--ca-file with the bundle.pem of its certificate has the connection encrypted.",
            f"Or go through a tunnel: ssh -L {port}:127.0.0.1:{port} HOST, and 127.0.0.1:{port}.",
            "On a network that you trust, --insecure or WEFT_INSECURE=1 sends it all the same.",
        ],
    )
