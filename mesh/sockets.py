"""Finding a port to listen on."""

import errno
import ipaddress
import socket

from mesh.errors import FailedPrecondition

PORTS_TRIED_MAX = 32


def bind_first_free(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `port` of `host`, or to the next port that is free.

    Port 0 lets the system choose. The caller tells people which port it became:
    `getsockname()[1]`. Raises FailedPrecondition when none of PORTS_TRIED_MAX ports
    is free, or the address isn't this machine's.
    """
    last_port = port if port == 0 else min(port + PORTS_TRIED_MAX - 1, 65535)
    for candidate in range(port, last_port + 1):
        try:
            return _bind(host, candidate)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise FailedPrecondition(f"can't listen on {host}: {error.strerror}") from None
    raise FailedPrecondition(f"no free port on {host} from {port} to {last_port}")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By TCP's number asyncio knows it for TCP, and turns Nagle's algorithm off: without it every
    # second part of an answer waits 40 ms for a delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Connections of an earlier run that linger in TIME_WAIT don't hold the port.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # With SO_REUSEADDR a second bind succeeds; only listening settles whose it is.
        bound.listen(128)
    except OSError:
        bound.close()
        raise
    return bound


def address_at(host: str, port: int) -> str:
    """A host and a port as they are dialled or listened at: an address of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dialled_host(host: str) -> str:
    """By what somebody on this machine dials who listens on `host`, in brackets where it is an
    address of IPv6: loopback, where that stands for all of the machine's addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{host}]" if address.version == 6 else host


def is_loopback(host: str) -> bool:
    """Whether what listens on `host`, a name or an address, can be reached from this machine
    only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def stays_here(target: str) -> bool:
    """Whether what is sent to `target`, as gRPC dials it, doesn't leave this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("ipv4", "ipv6"):
        addresses = rest.split(",")
    elif scheme == "dns":
        addresses = [rest.rpartition("/")[2]]
    else:
        addresses = [target]
    return all(is_loopback(address.rpartition(":")[0]) for address in addresses)
