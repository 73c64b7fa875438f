"""Splitting documents into passages."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vectors.chunking import (
    PASSAGE_LENGTH,
    PASSAGE_LENGTH_MAX,
    Passage,
    first_heading,
    split_markdown,
    split_plain,
)

GUIDE = """\
Before all headings.

# Guide

## Install

Run this:

```sh
# not a heading

make run
```

## Use ##

First.
Second.

Limits
------

None.

### Nothing stands here
"""

lines = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(
        ["", "", "```", "~~~", "````python", "# One", "## Two ##", "#", "===", "---", "> q", "- i"]
    ),
    st.text("ab .#`", min_size=1, max_size=60).map(lambda text: text * 80),
)
documents = st.lists(lines, max_size=60).map("\n".join)


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text.removeprefix("\ufeff"))


def test_markdown_is_split_at_headings_and_not_in_code() -> None:
    assert [(each.headings, each.line) for each in split_markdown(GUIDE)] == [
        ((), 1),
        (("Guide", "Install"), 7),
        (("Guide", "Use"), 17),
        (("Guide", "Limits"), 23),
        (("Guide", "Limits", "Nothing stands here"), 25),
    ]


def test_a_passage_is_the_text_as_it_stands() -> None:
    assert split_markdown(GUIDE)[1].text == ("Run this:\n\n```sh\n# not a heading\n\nmake run\n```")


@pytest.mark.parametrize(
    "line",
    ["#hashtag", "####### seven", "    # indented", "# " + "long " * 300, "a | b", "- item"],
)
def test_what_only_looks_like_a_heading_is_text(line: str) -> None:
    assert all(not each.headings for each in split_markdown(f"{line}\n\ntext"))


@pytest.mark.parametrize(
    "text",
    ["---\ntitle: x\n---\n\ntext", "a\nb\n---\n", "a | b\n--- | ---\n1 | 2", "- item\n---\ntext"],
)
def test_front_matter_tables_and_rules_are_text(text: str) -> None:
    assert all(not each.headings for each in split_markdown(text))


def test_a_fence_that_is_never_closed_holds_the_rest() -> None:
    passages = split_markdown("# One\n\n~~~\n```\n# code\n\n# more code")
    assert [each.headings for each in passages] == [("One",)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(end: str) -> None:
    passages = split_markdown(end.join(["# One", "", "text", "# Two", "more"]))
    assert [each.line for each in passages] == [3, 5]


def test_small_paragraphs_share_a_passage_and_large_ones_do_not() -> None:
    small, large = "word " * 10, "word " * 150
    passages = split_plain(f"{small}\n\n{small}\n\n{large}\n\n{large}")
    assert [each.line for each in passages] == [1, 7]
    assert split_plain(f"{small}\n\n{small}")[0].text.count(small.strip()) == 2


def test_a_long_line_is_split_behind_a_sentence() -> None:
    sentence = "This sentence says something. "
    texts = [each.text for each in split_plain(sentence * 200)]
    assert len(texts) > 1
    assert all(text.endswith("something.") for text in texts)


def test_a_word_without_end_is_cut() -> None:
    texts = [each.text for each in split_plain("x" * 5_000)]
    assert [len(text) for text in texts] == [2_000, 2_000, 1_000]


@pytest.mark.parametrize("text", ["", "\n\n", "  \n\t\n", "\ufeff"])
def test_a_text_without_words_has_no_passages(text: str) -> None:
    assert split_plain(text) == split_markdown(text) == []


def test_the_first_heading_is_the_outermost_of_the_first_headed_passage() -> None:
    assert first_heading(split_markdown(GUIDE)) == "Guide"
    assert first_heading(split_plain("# One")) == ""


@given(documents)
def test_plain_text_loses_nothing_but_white_space(text: str) -> None:
    joined = "".join(each.text for each in split_plain(text))
    assert without_space(joined) == without_space(text)


@given(documents)
def test_every_word_of_markdown_is_in_a_passage_or_its_headings(text: str) -> None:
    passages = split_markdown(text)
    kept = without_space("\n".join("\n".join((*each.headings, each.text)) for each in passages))
    for line in text.removeprefix("\ufeff").splitlines():
        for word in re.findall(r"\w+", line):
            assert word in kept


@given(documents, st.sampled_from([split_plain, split_markdown]))
def test_passages_are_bounded_and_begin_on_their_line(text: str, split: object) -> None:
    assert callable(split)
    passages: list[Passage] = split(text)
    numbered = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert [each.line for each in passages] == sorted(each.line for each in passages)
    for each in passages:
        assert 0 < len(each.text) <= PASSAGE_LENGTH_MAX + PASSAGE_LENGTH
        assert each.text.strip()
        assert each.text.split("\n")[0].strip() in numbered[each.line - 1]
        assert len(each.headings) <= 6
