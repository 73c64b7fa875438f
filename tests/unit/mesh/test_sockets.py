"""Finding a port to listen on."""

import socket

import pytest

from mesh.errors import FailedPrecondition
from mesh.sockets import bind_first_free


def test_a_taken_port_gives_the_next_one() -> None:
    with bind_first_free("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind_first_free("127.0.0.1", port) as second:
            assert second.getsockname()[1] > port


def test_no_port_beyond_the_last_is_tried() -> None:
    with bind_first_free("127.0.0.1", 65535), pytest.raises(FailedPrecondition, match="65535"):
        bind_first_free("127.0.0.1", 65535)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="can't listen"):
        bind_first_free("192.0.2.1", 0)


def test_the_socket_accepts_connections() -> None:
    with (
        bind_first_free("127.0.0.1", 0) as bound,
        socket.create_connection(bound.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == bound.getsockname()
