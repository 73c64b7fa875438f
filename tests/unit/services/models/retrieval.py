"""A small BM25 search over the folder `documents`, as an agent's search tool would be.

It shares no code with the model under test: words are lower-cased and cut to their
first six letters, nothing more.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "documents"
_PASSAGE_CHARACTERS = 700
_K1, _B = 1.2, 0.75


@dataclass(frozen=True)
class _Passage:
    uri: str
    title: str
    headings: tuple[str, ...]
    line: int
    text: str
    tokens: tuple[str, ...]


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(word[:6] for word in re.findall(r"[a-z0-9]+", text.lower()))


def _passages(path: Path) -> list[_Passage]:
    lines = path.read_text().splitlines()
    title = lines[0].lstrip("# ")
    found: list[_Passage] = []
    headings: list[str] = []
    block: list[str] = []
    start = 1

    def close() -> None:
        text = "\n".join(block).strip()
        if text:
            tokens = _tokens(" ".join([*headings, text]))
            found.append(_Passage(path.name, title, tuple(headings), start, text, tokens))
        block.clear()

    for number, line in enumerate(lines, 1):
        heading = re.match(r"(#+) (.*)", line)
        if heading:
            close()
            headings[len(heading[1]) - 1 :] = [heading[2]]
        elif not line.strip() and len("\n".join(block)) > _PASSAGE_CHARACTERS:
            close()
        if not block:
            start = number
        if not heading:
            block.append(line)
    close()
    return found


class Search:
    """Answers queries as Weft's search tool does, in JSON."""

    def __init__(self) -> None:
        self._passages = [one for path in sorted(FOLDER.iterdir()) for one in _passages(path)]
        self._frequency = Counter(token for one in self._passages for token in set(one.tokens))
        self._length = sum(len(one.tokens) for one in self._passages) / len(self._passages)

    def __call__(self, query: str, limit: int = 5) -> str:
        scored = [(self._score(one, _tokens(query)), one) for one in self._passages]
        best = sorted((one for one in scored if one[0] > 0), key=lambda one: -one[0])[:limit]
        passages = [
            {
                "uri": one.uri,
                "title": one.title,
                "headings": one.headings,
                "line": one.line,
                "text": one.text,
                "score": round(score, 3),
            }
            for score, one in best
        ]
        return json.dumps({"passages": passages})

    def _score(self, passage: _Passage, query: tuple[str, ...]) -> float:
        counts = Counter(passage.tokens)
        total = 0.0
        for token in set(query):
            rarity = math.log(1 + len(self._passages) / (0.5 + self._frequency[token]))
            count = counts[token]
            norm = count + _K1 * (1 - _B + _B * len(passage.tokens) / self._length)
            total += rarity * count * (_K1 + 1) / norm
        return total
