"""The words of a text and their stems, by the tokenizer of the full-text index."""

from collections.abc import Iterable, Iterator
from typing import cast

import apsw

from services.vectors.backends.schema import TOKENIZER


def words_of(connection: apsw.Connection, text: str) -> Iterator[tuple[str, str]]:
    """The words of the text in their order, each with its stem as it is indexed."""
    encoded = text.encode()
    tokenizer = connection.fts5_tokenizer(*TOKENIZER)
    found = tokenizer(encoded, apsw.FTS5_TOKENIZE_DOCUMENT, None, include_colocated=False)
    for start, end, stem in cast(Iterable[tuple[int, int, str]], found):
        yield encoded[start:end].decode(), stem


def stems_of(connection: apsw.Connection, text: str) -> frozenset[str]:
    """The stems of the text's words."""
    return frozenset(stem for _, stem in words_of(connection, text))
