"""A name server that answers what a test says, one answer after the other, and who asks it."""

import asyncio
import ipaddress
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

ASK_SECONDS_MAX = 5.0
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHHIH")


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers each question for an IPv4 address with the next of `answers`; the last one
    stays. `questions` are the names that were asked for."""

    answers: list[Sequence[str]]
    questions: list[str] = field(default_factory=list)
    port: int = 0
    transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be asked."""
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers a question."""
        name, end = _name(data)
        self.questions.append(name)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        (asked, *_) = _HEADER.unpack_from(data)
        records = b"".join(
            b"\xc0\x0c" + _RECORD.pack(1, 1, 0, 0, 4) + ipaddress.IPv4Address(each).packed
            for each in addresses
        )
        header = _HEADER.pack(asked, 0x8180, 1, len(addresses), 0, 0)
        assert self.transport is not None
        self.transport.sendto(header + data[_HEADER.size : end] + records, addr)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Asks it over the network, as a resolver does."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.connect(("127.0.0.1", self.port))
            labels = b"".join(
                bytes([len(label)]) + label.encode() for label in host.rstrip(".").split(".")
            )
            header = _HEADER.pack(secrets.randbits(16), 0x0100, 1, 0, 0, 0)
            await loop.sock_sendall(asking, header + labels + b"\0" + struct.pack("!HH", 1, 1))
            answer = await asyncio.wait_for(loop.sock_recv(asking, 4_096), ASK_SECONDS_MAX)
        count = _HEADER.unpack_from(answer)[3]
        _, place = _name(answer)
        addresses = []
        for _ in range(count):
            place += 2 + _RECORD.size
            addresses.append(socket.inet_ntoa(answer[place : place + 4]))
            place += 4
        return addresses


def _name(message: bytes) -> tuple[str, int]:
    """The name that a message asks for, and where its question ends."""
    labels, place = [], _HEADER.size
    while message[place]:
        length = message[place]
        labels.append(message[place + 1 : place + 1 + length].decode())
        place += 1 + length
    return ".".join(labels), place + 5


@asynccontextmanager
async def name_server(*answers: Sequence[str]) -> AsyncIterator[NameServer]:
    """Runs a name server on a free port of the loopback."""
    server = NameServer(list(answers))
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", 0))
    server.port = transport.get_extra_info("sockname")[1]
    try:
        yield server
    finally:
        transport.close()
