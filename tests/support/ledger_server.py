"""The server of `ledger.v1.Ledger`: a tool with effects that can be counted.

In a test: `async with serving({LEDGER: Ledger(path).handlers}) as address`. As its own
process: `python -m tests.support.ledger_server --port 0 --file PATH --address-file PATH`.
Every effect is a line in the file, synced before it is answered; a server that starts on
the file goes on from what is in it.
"""

import argparse
import asyncio
import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.support.grpc_server import Handler, serving
from tests.support.protos import message_type

LEDGER = "ledger.v1.Ledger"


@dataclass(frozen=True, slots=True)
class Entry:
    """One effect: what was credited, for which call."""

    idempotency_key: str
    epoch: str
    account: str
    amount: int


def read_entries(path: Path) -> list[Entry]:
    """The effects in the file, oldest first; none where there is no file."""
    if not path.exists():
        return []
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()]


def effects_by_key(path: Path) -> Counter[str]:
    """How often each idempotency key had an effect."""
    return Counter(entry.idempotency_key for entry in read_entries(path))


class Ledger:
    """Credits accounts in a file.

    With `deduplicates` a key that was seen changes nothing more: an idempotent tool;
    else each call has its effect: an irreversible one. The delays, in seconds, stand
    before and after the effect.
    """

    def __init__(
        self,
        path: Path,
        *,
        deduplicates: bool = False,
        delay_before_seconds: float = 0,
        delay_after_seconds: float = 0,
    ) -> None:
        self._path = path
        self._deduplicates = deduplicates
        self._delay_before_seconds = delay_before_seconds
        self._delay_after_seconds = delay_after_seconds
        self._balances: defaultdict[str, int] = defaultdict(int)
        self._keys: set[str] = set()
        self.calls: Counter[str] = Counter()
        """How often this server was called with each key, whatever came of it."""
        for entry in read_entries(path):
            self._count(entry)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The methods, for `serving`."""
        return {"Credit": self.credit, "Balance": self.balance, "Slow": self.slow}

    async def credit(self, request: Any, context: Any) -> Any:
        """INVALID_ARGUMENT where the amount is 0."""
        if request.amount == 0:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the amount must not be 0")
        metadata = dict(context.invocation_metadata())
        key = metadata.get("idempotency-key", "")
        self.calls[key] += 1
        await asyncio.sleep(self._delay_before_seconds)
        if not (self._deduplicates and key in self._keys):
            epoch = metadata.get("x-weft-epoch", "")
            self._append(Entry(key, epoch, request.account, request.amount))
        await asyncio.sleep(self._delay_after_seconds)
        return message_type("ledger.v1.CreditResponse")(balance=self._balances[request.account])

    async def balance(self, request: Any, context: Any) -> Any:
        """0 for an account that was never credited."""
        return message_type("ledger.v1.BalanceResponse")(balance=self._balances[request.account])

    async def slow(self, request: Any, context: Any) -> Any:
        """Answers after the time that the request names."""
        await asyncio.sleep(request.seconds)
        return message_type("ledger.v1.SlowResponse")()

    def _append(self, entry: Entry) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._count(entry)

    def _count(self, entry: Entry) -> None:
        self._balances[entry.account] += entry.amount
        self._keys.add(entry.idempotency_key)


async def _serve(options: argparse.Namespace) -> None:
    ledger = Ledger(
        options.file,
        deduplicates=options.deduplicate,
        delay_before_seconds=options.delay_before_seconds,
        delay_after_seconds=options.delay_after_seconds,
    )
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serving({LEDGER: ledger.handlers}, port=options.port) as address:
        # Renamed into place, so that a reader never sees half of it.
        written = options.address_file.with_suffix(".new")
        written.write_text(address)
        written.rename(options.address_file)
        await ended.wait()


def main() -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="A ledger whose effects can be counted.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--file", type=Path, required=True, help="where the effects are kept")
    parser.add_argument("--address-file", type=Path, required=True, help="gets the address")
    parser.add_argument("--deduplicate", action="store_true", help="one effect for each key")
    parser.add_argument("--delay-before-seconds", type=float, default=0)
    parser.add_argument("--delay-after-seconds", type=float, default=0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
