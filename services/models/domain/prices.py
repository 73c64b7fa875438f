"""What tokens cost."""

from dataclasses import dataclass

from weft.models.v1 import models_pb2

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """Of a model: millionths of a US dollar per million tokens."""

    input_micro_usd: int = 0
    output_micro_usd: int = 0
    cached_input_micro_usd: int = 0

    def cost_micro_usd(self, usage: models_pb2.Usage) -> int:
        """What a call cost, rounded up."""
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        cost = (
            (usage.input_tokens - cached) * self.input_micro_usd
            + cached * self.cached_input_micro_usd
            + usage.output_tokens * self.output_micro_usd
        )
        return -(-cost // MILLION)

    def most_micro_usd(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a call of so many tokens may cost."""
        dearest = max(self.input_micro_usd, self.cached_input_micro_usd)
        return -(-(input_tokens * dearest + output_tokens * self.output_micro_usd) // MILLION)
