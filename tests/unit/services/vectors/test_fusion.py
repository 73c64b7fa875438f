"""Merging rankings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vectors.domain.fusion import fused

rankings = st.lists(st.lists(st.integers(0, 9), unique=True), max_size=3)


def test_a_place_counts_by_its_rank() -> None:
    merged = fused([["a", "b"], ["b", "c"]])
    assert [item for item, _ in merged] == ["b", "a", "c"]
    assert [score for _, score in merged] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


@given(rankings)
def test_everything_is_there_once_and_best_first(given_rankings: list[list[int]]) -> None:
    merged = fused(given_rankings)
    items = [item for item, _ in merged]
    assert sorted(items) == sorted({item for ranking in given_rankings for item in ranking})
    assert [score for _, score in merged] == sorted((score for _, score in merged), reverse=True)


@given(st.lists(st.integers(0, 9), unique=True))
def test_one_ranking_stays_as_it_is(ranking: list[int]) -> None:
    assert [item for item, _ in fused([ranking, []])] == ranking
    assert [item for item, _ in fused([ranking, ranking])] == ranking
