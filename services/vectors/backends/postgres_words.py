"""Words as PostgreSQL's full-text types write them."""

import hashlib
from collections.abc import Iterable

import apsw

from services.vectors.backends.words import words_of

LEXEME_BYTES_MAX = 1_000
"""PostgreSQL takes 2,046."""
POSITION_MAX = 16_383
POSITIONS_MAX = 255


def lexemes(parts: Iterable[tuple[str, str]]) -> str:
    """A `tsvector` of texts, each with the weight (`A` to `D`) of its words."""
    tokenizer = apsw.Connection(":memory:")
    places: dict[str, list[str]] = {}
    position = 0
    for text, weight in parts:
        for _, stem in words_of(tokenizer, text):
            position = min(position + 1, POSITION_MAX)
            found = places.setdefault(stem, [])
            if len(found) < POSITIONS_MAX:
                found.append(f"{position}{weight}")
    return " ".join(f"{quoted(stem)}:{','.join(found)}" for stem, found in places.items())


def quoted(stem: str) -> str:
    """The stem as a lexeme; one that is too long by its hash."""
    if len(stem.encode()) > LEXEME_BYTES_MAX:
        stem = hashlib.sha256(stem.encode()).hexdigest()
    escaped = stem.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
