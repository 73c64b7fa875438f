"""Who a process or a client is in its certificate, and which services it may act as.

A certificate has exactly one SPIFFE ID (X.509-SVID, section 2: validators MUST reject one
with several URIs), while a process may run several services. So the ID names the process by
what runs in it: `spiffe://<trust domain>/process/<role>`, where the role is a service, or
several with dots between (`agents.state`), or `host`, which is all of the catalogue, as for
the users of NATS. Names of services have no dots.

A client that isn't one of Weft's processes is `spiffe://<trust domain>/client/<name>`: no
service at all. It gets a connection where processes are talked to, and what its API key allows.

gRPC for Python lets a client compare a server's certificate with a DNS name only. Each
service of a process therefore has one beside the ID: `agents.<trust domain>`.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mesh.ids import RESOURCE_ID

HOST = "host"
TRUST_DOMAIN = "weft.internal"
"""The one that is taken where none is named; nobody resolves names below `.internal`."""

# SPIFFE-ID, section 2.1, without the underscores that DNS names lack.
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_TRUST_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL}){{0,7}}")
_SERVICE = r"[a-z][a-z0-9-]{0,62}"
_ROLE = re.compile(rf"{_SERVICE}(\.{_SERVICE})*")
_ID = re.compile(r"spiffe://([^/]+)/process/([^/]+)")
_CLIENT = re.compile(rf"spiffe://([^/]+)/client/({RESOURCE_ID})")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process of a deployment; its text is the SPIFFE ID."""

    trust_domain: str
    role: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/process/{self.role}"

    def may_act_as(self, service: str) -> bool:
        """Whether that service of the catalogue runs in the process."""
        return self.role == HOST or service in self.role.split(".")


@dataclass(frozen=True, slots=True)
class ClientId:
    """A client of a deployment, in whatever language; its text is the SPIFFE ID."""

    trust_domain: str
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/client/{self.name}"

    def may_act_as(self, service: str) -> bool:
        """It is no service."""
        return False


Holder = ProcessId | ClientId
"""Whose a certificate is."""


def parse_holder(text: str) -> Holder | None:
    """Whom an ID names; None where it names nobody of a deployment."""
    match = _CLIENT.fullmatch(text)
    if match is None:
        return parse_process_id(text)
    return ClientId(match[1], match[2]) if _TRUST_DOMAIN.fullmatch(match[1]) else None


def parse_process_id(text: str) -> ProcessId | None:
    """The process that an ID names; None where it names none."""
    match = _ID.fullmatch(text)
    if match is None or not _ROLE.fullmatch(match[2]) or not _TRUST_DOMAIN.fullmatch(match[1]):
        return None
    return ProcessId(match[1], match[2])


def check_trust_domain(text: str) -> str:
    """`text`, where it can name a trust domain; ValueError where not."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise ValueError(f"{text!r} can't name a trust domain: lower case letters, digits, - and .")
    return text


def role_of(services: Sequence[str], catalogue: Collection[str]) -> str:
    """The role of a process with those services; `host` where none is named, or all are.
    ValueError for one that isn't in the catalogue."""
    unknown = sorted(set(services) - set(catalogue) - {HOST})
    if unknown:
        known = ", ".join(sorted(catalogue))
        raise ValueError(f"there is no service {unknown[0]}; there are {known}")
    named = set(services)
    if not named or HOST in named or named == set(catalogue):
        return HOST
    return ".".join(sorted(named))


def services_of(role: str, catalogue: Collection[str]) -> list[str]:
    """The services of a process with that role."""
    return sorted(catalogue) if role == HOST else role.split(".")


def server_name(service: str, trust_domain: str) -> str:
    """The DNS name that a process has in its certificate if the service runs in it."""
    return f"{service}.{trust_domain}"
