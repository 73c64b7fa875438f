"""Merging rankings that know nothing of each other's scores.

Reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009): what stands at rank r of a
ranking gets 1 / (60 + r) from it, and those add up. 60 is the paper's.
"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

RANK_OFFSET = 60

T = TypeVar("T", bound=Hashable)


def fused(rankings: Sequence[Sequence[T]]) -> list[tuple[T, float]]:
    """What is in any of the rankings, with its score, best first; of equals, what stands
    in an earlier ranking first."""
    scores: dict[T, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda scored: -scored[1])
