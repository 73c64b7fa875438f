"""Prose out of Markdown: sentences with the headings that they stand under."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

SENTENCES_MAX = 4_000
SENTENCE_CHARACTERS_MAX = 300
"""A longer sentence is parted at its semicolons too."""

_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+(?:\[[ xX]\]\s+)?")
_TABLE_RULE = re.compile(r"^\s*\|?[\s:|-]*-{2,}[\s:|-]*\|?\s*$")
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)\s]*(?:\s[^)]*)?\)")
_LINK = re.compile(r"\[([^\]]+)\]\([^)\s]*(?:\s[^)]*)?\)")
_EMPHASIS = re.compile(r"(?<!\w)(\*\*\*|\*\*|\*|___|__|_)(?=\S)(.+?)(?<=\S)\1(?!\w)")
_TAG = re.compile(
    r"</?(?:a|b|br|center|code|dd|details|div|dl|dt|em|h[1-6]|hr|i|img|kbd|li|ol|p|pre|span|strong|sub"
    r"|summary|sup|table|tbody|td|th|thead|tr|u|ul)\b[^>]{0,500}>|<!--.*?-->",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”\u2019')\]]*\s+(?=[\"“\u2018'(\[`]*[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|etc|vs|Mr|Mrs|Ms|Dr|St|No|approx|cf|Fig|Inc|Ltd|[A-Z])\.$"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, list item, table row or line of code, cleaned of markup.

    `headings` are those above it, outermost first. `lead` is the sentence that
    introduces the list, table or code that it is part of, else the one before it in
    its paragraph; empty where there is none. `is_code` marks lines of code.
    """

    text: str
    headings: tuple[str, ...] = ()
    lead: str = ""
    is_code: bool = False


def clean(text: str) -> str:
    """`text` without inline markup, its white space made single; code stays as it is."""
    pieces = text.split("`")
    pieces[::2] = [_clean_prose(piece) for piece in pieces[::2]]
    return " ".join("".join(pieces).replace("**", "").split())


def _clean_prose(text: str) -> str:
    text = _IMAGE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _TAG.sub("", text)
    return _EMPHASIS.sub(r"\2", text)


def sentences(text: str, headings: tuple[str, ...] = ()) -> list[Sentence]:
    """The sentences of Markdown or plain text, at most SENTENCES_MAX."""
    reader = _Reader(headings)
    for line in text.splitlines():
        reader.take(line)
        if len(reader.found) >= SENTENCES_MAX:
            break
    reader.end_paragraph()
    return reader.found[:SENTENCES_MAX]


def split_sentences(paragraph: str) -> Iterator[str]:
    """Parts a paragraph at its sentences' ends; abbreviations don't end one."""
    start = 0
    for match in _SENTENCE_END.finditer(paragraph):
        if _ABBREVIATION.search(paragraph[start : match.start()]):
            continue
        yield from _parted(paragraph[start : match.end()].strip())
        start = match.end()
    yield from _parted(paragraph[start:].strip())


def _parted(sentence: str) -> list[str]:
    if len(sentence) <= SENTENCE_CHARACTERS_MAX:
        return [sentence] if sentence else []
    return [part for part in sentence.split("; ") if part]


class _Reader:
    """Reads lines and collects sentences; one per text."""

    def __init__(self, headings: tuple[str, ...]) -> None:
        self.found: list[Sentence] = []
        self._given = headings
        self._own: list[tuple[int, str]] = []
        self._paragraph: list[str] = []
        self._lead = ""
        self._is_item = False
        self._columns: list[str] | None = None
        self._in_code = False

    def take(self, line: str) -> None:
        if _FENCE.match(line):
            self.end_paragraph()
            self._in_code = not self._in_code
        elif self._in_code:
            self._add(line.strip(), is_code=True)
        elif heading := _HEADING.match(line):
            self._take_heading(len(heading[1]), clean(heading[2]))
        elif not line.strip():
            self.end_paragraph()
            self._columns = None
        elif line.count("|") >= 2 and line.strip().startswith("|"):
            self._take_row(line)
        else:
            self._take_prose(line)

    def _take_heading(self, level: int, title: str) -> None:
        self.end_paragraph()
        self._own = [(depth, text) for depth, text in self._own if depth < level]
        self._own.append((level, title))
        self._lead = ""

    def _take_row(self, line: str) -> None:
        self.end_paragraph()
        if _TABLE_RULE.match(line):
            return
        cells = [clean(cell) for cell in line.strip().strip("|").split("|")]
        if self._columns is None:
            self._columns = cells
            return
        columns = [*self._columns, *[""] * len(cells)]
        named = [
            f"{column}: {cell}" if column else cell
            for column, cell in zip(columns, cells, strict=False)
            if cell
        ]
        self._add("; ".join(named))

    def _take_prose(self, line: str) -> None:
        bullet = _BULLET.match(line)
        if bullet:
            self.end_paragraph()
            self._is_item = True
            line = line[bullet.end() :]
        self._paragraph.append(line.strip().lstrip("> "))

    def end_paragraph(self) -> None:
        paragraph, self._paragraph = clean(" ".join(self._paragraph)), []
        is_item, self._is_item = self._is_item, False
        before = self._lead if is_item else ""
        for sentence in split_sentences(paragraph):
            self._add(sentence, lead=before)
            before = sentence
        if paragraph and not is_item:
            self._lead = before if before.endswith(":") else ""

    def _add(self, text: str, *, lead: str | None = None, is_code: bool = False) -> None:
        if text:
            headings = self._given + tuple(title for _, title in self._own)
            lead = self._lead if lead is None else lead
            self.found.append(Sentence(text, headings, lead, is_code))
