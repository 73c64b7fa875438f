"""Where a process says that others find it: always an address."""

import pytest

from mesh.control.xds.endpoints import address_of
from mesh.errors import FailedPrecondition
from mesh.runtime.registration import target_of
from mesh.runtime.settings import RuntimeSettings


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ({}, "127.0.0.1:1"),
        ({"host": "127.0.0.2"}, "127.0.0.2:1"),
        ({"host": "::1"}, "[::1]:1"),
        ({"host": "0.0.0.0", "advertised_host": "10.0.0.7"}, "10.0.0.7:1"),
        # All of a machine's addresses, towards a NATS on this machine.
        ({"host": "0.0.0.0"}, "127.0.0.1:1"),
        ({"host": "0.0.0.0", "nats_url": "nats://127.0.0.3:4222"}, "127.0.0.1:1"),
        ({"host": "::", "nats_url": "nats://127.0.0.3:4222,nats://127.0.0.4"}, "127.0.0.1:1"),
        ({"host": "0.0.0.0", "nats_url": "nats://user:word@localhost:4222"}, None),
        ({"host": "0.0.0.0", "nats_url": "localhost"}, None),
        ({"host": "localhost"}, None),
    ],
)
def test_an_address_that_clients_can_be_told(given: dict[str, str], target: str | None) -> None:
    told = target_of(RuntimeSettings(**given), 1)  # type: ignore[arg-type]
    assert address_of(told) is not None
    assert target in (None, told)


def test_a_name_without_an_address_is_refused() -> None:
    settings = RuntimeSettings(advertised_host="no-such-host.invalid")
    with pytest.raises(FailedPrecondition, match=r"no-such-host\.invalid"):
        target_of(settings, 1)
