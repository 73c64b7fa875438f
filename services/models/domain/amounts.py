"""Money and tokens, together."""

from collections.abc import Iterable
from dataclasses import dataclass

from weft.models.v1 import budgets_pb2

UNLIMITED = 2**62
"""What isn't limited: more than anybody spends."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Millionths of a US dollar, and tokens. Neither is negative where it is stored; what
    is left of a limit may be."""

    micro_usd: int = 0
    tokens: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.micro_usd + other.micro_usd, self.tokens + other.tokens)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.micro_usd - other.micro_usd, self.tokens - other.tokens)

    def __mul__(self, times: int) -> "Amount":
        return Amount(self.micro_usd * times, self.tokens * times)

    def __floordiv__(self, parts: int) -> "Amount":
        return Amount(self.micro_usd // parts, self.tokens // parts)

    def fits(self, room: "Amount") -> bool:
        """Whether there is room for it, of both."""
        return self.micro_usd <= room.micro_usd and self.tokens <= room.tokens

    def at_least(self, other: "Amount") -> "Amount":
        """The greater one of each."""
        return Amount(max(self.micro_usd, other.micro_usd), max(self.tokens, other.tokens))

    def at_most(self, other: "Amount") -> "Amount":
        """The smaller one of each."""
        return Amount(min(self.micro_usd, other.micro_usd), min(self.tokens, other.tokens))

    def message(self) -> budgets_pb2.Amount:
        """As it is stored."""
        return budgets_pb2.Amount(micro_usd=self.micro_usd, tokens=self.tokens)


NOTHING = Amount()


def amount_of(message: budgets_pb2.Amount) -> Amount:
    """What is stored; nothing where it isn't."""
    return Amount(message.micro_usd, message.tokens)


def limit_of(message: budgets_pb2.Amount) -> Amount:
    """A limit; what it doesn't say isn't limited."""
    return Amount(
        message.micro_usd if message.HasField("micro_usd") else UNLIMITED,
        message.tokens if message.HasField("tokens") else UNLIMITED,
    )


def total(amounts: Iterable[Amount]) -> Amount:
    """All of them together."""
    return sum(amounts, NOTHING)
