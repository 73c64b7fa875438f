"""Splits documents into passages: pure functions of the text.

A passage holds whole blocks (paragraphs, lists, fenced code) of one section, up to
about `PASSAGE_LENGTH` code points; a block that is longer than `PASSAGE_LENGTH_MAX` is
split at lines, sentences or words, whichever is possible first. Nothing but white space
and the lines of Markdown headings is left out, and those are in `headings`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PASSAGE_LENGTH = 1_000
PASSAGE_LENGTH_MAX = 2_000
HEADING_LENGTH_MAX = 1_000

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|--+)[ \t]*")
_PARAGRAPH_START = re.compile(r" {0,3}[^\s>|*+-]")
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.{0,10000}?)\n---", re.DOTALL)
_MATTER_TITLE = re.compile(r"^title:[ \t]*(\S.*?)[ \t\r]*$", re.MULTILINE | re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…][\"')\]]*\s")


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document. `headings` are those that it stands under, outermost first;
    `line` is the document's line at which `text` begins, from 1; where the document has
    pages, `page` is which, from 1, and `line` that page's."""

    headings: tuple[str, ...]
    line: int
    text: str
    page: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Lines that belong together; `line` is the number of the first."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """A block of a document, or a heading: of the level 1 or more, and with a title."""

    block: Block
    level: int = 0
    title: str = ""


@dataclass(frozen=True, slots=True)
class _Section:
    """What stands under one heading, without the sections below it."""

    headings: tuple[str, ...]
    blocks: tuple[Block, ...]


def split_plain(text: str) -> list[Passage]:
    """The passages of a plain text, by its paragraphs."""
    blocks = _blocks(list(enumerate(_lines(text), 1)), fenced=False)
    return list(_pack(_Section((), tuple(blocks))))


def split_markdown(text: str) -> list[Passage]:
    """The passages of a Markdown text, by its headings and blocks."""
    return split_items(_items(_lines(text)))


def split_items(items: Iterable[Item]) -> list[Passage]:
    """The passages of blocks and headings in their order."""
    return [passage for section in _sections(items) for passage in _pack(section)]


def first_heading(passages: Iterable[Passage]) -> str:
    """The first heading above any passage; empty where there is none."""
    return next((passage.headings[0] for passage in passages if passage.headings), "")


def front_matter_title(text: str) -> str:
    """The `title:` of the front matter that a Markdown text begins with; empty without."""
    matter = _FRONT_MATTER.match(text)
    title = _MATTER_TITLE.search(matter[1]) if matter else None
    return title[1].strip("\"' ") if title else ""


def _lines(text: str) -> list[str]:
    # Not str.splitlines: editors don't count form feeds and the like as ends of lines.
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _items(lines: list[str]) -> Iterator[Item]:
    body: list[tuple[int, str]] = []
    for number, line, level, title in _with_headings(lines):
        if not level:
            body.append((number, line))
            continue
        yield from map(Item, _blocks(body, fenced=True))
        body = []
        yield Item(Block(number, line.strip()), level, title)
    yield from map(Item, _blocks(body, fenced=True))


def _sections(items: Iterable[Item]) -> Iterator[_Section]:
    path: list[tuple[int, str]] = []
    blocks: list[Block] = []
    heading: Block | None = None
    for item in items:
        if not item.level:
            blocks.append(item.block)
            continue
        yield from _section(path, blocks, heading, item.level)
        path = [(depth, text) for depth, text in path if depth < item.level]
        path.append((item.level, item.title))
        blocks, heading = [], item.block
    yield from _section(path, blocks, heading, 0)


def _section(
    path: list[tuple[int, str]], blocks: list[Block], heading: Block | None, next_level: int
) -> Iterator[_Section]:
    if not blocks and heading and (not next_level or next_level <= path[-1][0]):
        # Nothing stands below it, so its words would be lost.
        blocks = [heading]
    if blocks:
        yield _Section(tuple(text for _, text in path if text), tuple(blocks))


def _with_headings(lines: list[str]) -> Iterator[tuple[int, str, int, str]]:
    """Each line with its number, and the level and text of the heading that it is, if
    it is one; underlines of headings are left out."""
    fence = ""
    skip = False
    for index, line in enumerate(lines):
        if skip:
            skip = False
            continue
        fence_before, fence = fence, _fence_after(fence, line)
        level, title = 0, ""
        if not fence and not fence_before:
            level, title, skip = _heading(lines, index)
        yield index + 1, line, level, title


def _heading(lines: list[str], index: int) -> tuple[int, str, bool]:
    """Level and text of the heading at `index`, and whether the next line underlines it."""
    line = lines[index]
    if len(line) > HEADING_LENGTH_MAX:
        return 0, "", False
    if match := _HEADING.match(line):
        return len(match[1]), _without_closing(line[match.end() :].strip()), False
    # Only a paragraph of one line, so that front matter and tables aren't taken for one.
    stands_alone = index == 0 or not lines[index - 1].strip()
    if not stands_alone or index + 1 == len(lines) or not _PARAGRAPH_START.match(line):
        return 0, "", False
    underline = _UNDERLINE.fullmatch(lines[index + 1])
    if underline is None:
        return 0, "", False
    return (1 if underline[1][0] == "=" else 2), line.strip(), True


def _without_closing(title: str) -> str:
    """The title without the number signs that may end it."""
    bare = title.rstrip("#")
    return bare.rstrip() if not bare or bare[-1].isspace() else title


def _fence_after(fence: str, line: str) -> str:
    """The open code fence once `line` was read; empty outside of code."""
    if not fence:
        match = _FENCE.match(line)
        return match[1] if match else ""
    closing = line.strip()
    closes = len(closing) >= len(fence) and closing == fence[0] * len(closing)
    return "" if closes else fence


def _blocks(numbered: list[tuple[int, str]], *, fenced: bool) -> Iterator[Block]:
    """Runs of lines without a blank one between them; a fence is one run."""
    run: list[str] = []
    first = 0
    fence = ""
    for number, line in numbered:
        inside = bool(fence)
        fence = _fence_after(fence, line) if fenced else ""
        if line.strip() or inside:
            first = first if run else number
            run.append(line)
        elif run:
            yield Block(first, "\n".join(run))
            run = []
    if run:
        yield Block(first, "\n".join(run).rstrip())


def _pack(section: _Section) -> Iterator[Passage]:
    """Joins neighbouring blocks up to PASSAGE_LENGTH."""
    text, line = "", 0
    for block in section.blocks:
        for part in _parts(block):
            if text and len(text) + 2 + len(part.text) > PASSAGE_LENGTH:
                yield Passage(section.headings, line, text)
                text = ""
            text, line = (f"{text}\n\n{part.text}", line) if text else (part.text, part.line)
    if text:
        yield Passage(section.headings, line, text)


def _parts(block: Block) -> Iterator[Block]:
    """The block itself, or the parts of one that is too long."""
    if len(block.text) <= PASSAGE_LENGTH_MAX:
        yield block
        return
    text, line = "", block.line
    for number, whole in enumerate(block.text.split("\n"), block.line):
        for piece in _pieces(whole):
            if text and len(text) + 1 + len(piece) > PASSAGE_LENGTH:
                yield Block(line, text)
                text = ""
            text, line = (f"{text}\n{piece}", line) if text else (piece, number)
    if text:
        yield Block(line, text)


def _pieces(line: str) -> Iterator[str]:
    """The line, cut so that no piece is longer than PASSAGE_LENGTH_MAX."""
    while len(line) > PASSAGE_LENGTH_MAX:
        cut = _cut(line)
        if piece := line[:cut].rstrip():
            yield piece
        line = line[cut:].lstrip()
    if line.strip():
        yield line


def _cut(line: str) -> int:
    """Where to cut a line that is too long: behind a sentence, else a word, else anywhere."""
    window = line[:PASSAGE_LENGTH_MAX]
    ends = [match.end() for match in _SENTENCE_END.finditer(window, PASSAGE_LENGTH // 2)]
    if ends:
        return ends[-1]
    space = max(window.rfind(" "), window.rfind("\t"))
    return space + 1 if space > 0 else PASSAGE_LENGTH_MAX
