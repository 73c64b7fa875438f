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
_BOX_RULE = re.compile(r"^\s*[─-▟+=|-]*[─-▟]{3}[─-▟+=|-]*\s*$")
_CELL_END = re.compile(r"(?<!\\)\|")
_KEY = re.compile(r"^((?:[^\s:.;]+ ){0,5}[^\s:.;]*[^\s:;])(?::| -| \u2013| \u2014| →)(?=\s)")
_BREAK = re.compile(r"^\s*(?:-{3,}|\*{3,}|_{3,}|={3,})\s*$")
_KEY_LINE = re.compile(r"^\s*[A-Za-z`*_\d][^:.]{0,40}:\s+\S")
_TITLE_LINE = re.compile(r"[A-Z\d][^.!?:;,|]{1,60}[^\s.!?:;,|]")
_TITLE_LEVEL, _TERM_LEVEL = 7, 8
_TERM_LINES_MAX = 3
_TOPIC_WORDS_MAX = 3
_FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*(.*)$")
_BRACES = re.compile(r"[{}]")
_CODE_INDENT = 4
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

    `headings` are those above it, outermost first. `lead` introduces the list, table or
    code that it is part of, asks the question that it answers, or names the subject of its
    paragraph; `before` is the sentence before it there. `key` is what it tells about,
    where its form says so: the first cell of a row, the words before a colon. Empty where
    there is none. `is_code` marks lines of code.
    """

    text: str
    headings: tuple[str, ...] = ()
    lead: str = ""
    before: str = ""
    key: str = ""
    is_code: bool = False


def clean(text: str) -> str:
    """`text` without inline markup, its white space made single; code stays as it is."""
    pieces = text.split("`")
    pieces[::2] = [_clean_prose(piece) for piece in pieces[::2]]
    return " ".join("".join(pieces).replace("**", "").replace("│", " ").split())


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
    reader.end()
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


def _topic(sentence: str) -> str:
    """What a paragraph's first sentence says that it is about: `Heating.`, `Refunds: ...`."""
    if sentence.endswith(".") and sentence.count(" ") < _TOPIC_WORDS_MAX:
        return sentence
    keyed = _KEY.match(sentence)
    return keyed[1] if keyed else ""


class _Reader:
    """Reads lines and collects sentences; one per text."""

    def __init__(self, headings: tuple[str, ...]) -> None:
        self.found: list[Sentence] = []
        self._given = headings
        self._own: list[tuple[int, str]] = []
        self._paragraph: list[str] = []
        self._indent = 0
        self._lead = ""
        self._question = ""
        self._is_item = False
        self._columns: list[str] = []
        self._first_row: list[str] = []
        self._fence = ""
        self._fence_lead = ""

    def take(self, line: str) -> None:
        if self._fence:
            self._take_code(line)
        elif fence := _FENCE.match(line):
            self.end_paragraph()
            self._fence = fence[1]
            self._fence_lead = self._lead or " ".join(_BRACES.sub(" ", fence[2]).split())
        elif self._lead and not self._paragraph and len(line) - len(line.lstrip()) >= _CODE_INDENT:
            self._add(line.strip(), lead=self._lead, is_code=True)
        elif heading := _HEADING.match(line):
            self._take_heading(len(heading[1]), clean(heading[2]))
        elif not line.strip():
            self._end_block()
        elif _BOX_RULE.match(line) or _BREAK.match(line):
            self.end_paragraph()
        elif line.count("|") >= 2 and line.strip().startswith("|"):
            self._take_row(line)
        else:
            self._take_prose(line)

    def _take_code(self, line: str) -> None:
        bare = line.strip()
        if set(bare) == {self._fence[0]} and len(bare) >= len(self._fence):
            self._fence = ""
        elif not _FENCE.match(line):
            self._add(bare, lead=self._fence_lead, is_code=True)

    def _take_heading(self, level: int, title: str) -> None:
        self.end_paragraph()
        self._own = [(depth, text) for depth, text in self._own if depth < level]
        self._own.append((level, title))
        self._lead = self._question = ""

    def _take_row(self, line: str) -> None:
        self.end_paragraph()
        if _TABLE_RULE.match(line):
            self._columns, self._first_row = self._first_row, []
            return
        cells = [clean(cell) for cell in _CELL_END.split(line.strip().strip("|"))]
        if not self._columns and not self._first_row:
            self._first_row = cells
            return
        self._end_table_head()
        self._add_row(cells)

    def _end_table_head(self) -> None:
        """A first row without a rule below it has no names for columns."""
        first, self._first_row = self._first_row, []
        if first:
            self._add_row(first)

    def _add_row(self, cells: list[str]) -> None:
        columns = [*self._columns, *[""] * len(cells)]
        named = [
            f"{column}: {cell}" if column else cell
            for column, cell in zip(columns, cells, strict=False)
            if cell
        ]
        self._add("; ".join(named), lead=self._lead, key=cells[0])

    def _take_prose(self, line: str) -> None:
        bullet = _BULLET.match(line)
        indent = len(line) - len(line.lstrip())
        if bullet:
            self.end_paragraph()
            self._is_item = True
            line = line[bullet.end() :]
        elif self._paragraph and not self._is_item:
            if indent > self._indent + 1 and len(self._paragraph) <= _TERM_LINES_MAX:
                self._take_term()
            elif _KEY_LINE.match(line) and _KEY_LINE.match(self._paragraph[0]):
                self.end_paragraph()
        if not self._paragraph:
            self._indent = indent
        self._paragraph.append(line.strip().lstrip("> "))

    def _take_term(self) -> None:
        """Lines above deeper ones name what those tell of, as in a manual page."""
        term = clean(" ".join(self._paragraph))
        if not term.endswith((".", ":", ",", ";")):
            self._paragraph = []
            self._take_heading(_TERM_LEVEL, term)

    def _end_block(self) -> None:
        """An empty line: a short line that stood alone is the heading of a plain text."""
        alone = len(self._paragraph) == 1 and not self._is_item
        if alone and _TITLE_LINE.fullmatch(self._paragraph[0]):
            title = clean(self._paragraph.pop())
            self._take_heading(_TITLE_LEVEL, title)
        self.end_paragraph()
        self._end_table_head()
        self._columns = []

    def end(self) -> None:
        self.end_paragraph()
        self._end_table_head()

    def end_paragraph(self) -> None:
        paragraph, self._paragraph = clean(" ".join(self._paragraph)), []
        is_item, self._is_item = self._is_item, False
        lead, before = self._question or (self._lead if is_item else ""), ""
        for sentence in split_sentences(paragraph):
            self._add(sentence, lead=lead, before=before)
            if sentence.endswith("?"):
                lead = sentence
            elif not before and not lead:
                lead = _topic(sentence)
            before = sentence
        if paragraph:
            # A question that stands alone is answered by the paragraph after it.
            self._question = paragraph if before.endswith("?") and before == paragraph else ""
        if paragraph and not is_item:
            self._lead = before if before.endswith(":") else ""

    def _add(
        self, text: str, *, lead: str = "", before: str = "", key: str = "", is_code: bool = False
    ) -> None:
        if text:
            headings = self._given + tuple(title for _, title in self._own)
            if not key and (keyed := _KEY.match(text)):
                key = keyed[1]
            self.found.append(Sentence(text, headings, lead, before, key, is_code))
