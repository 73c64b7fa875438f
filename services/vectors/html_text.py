"""Splits HTML into passages, by its headings and blocks: pure functions of the text.

Scripts, styles and what else isn't read by people is left out. What is broken is read as
far as it goes; nothing is fetched.
"""

import re
from html.parser import HTMLParser

from services.vectors.chunking import HEADING_LENGTH_MAX, Block, Item, Passage, split_items

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SKIPPED = frozenset({"script", "style", "template", "noscript", "svg", "math", "iframe", "object"})
_BLOCKS = frozenset(
    {
        *("address", "article", "aside", "blockquote", "body", "caption", "dd", "details"),
        *("dialog", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form"),
        *("header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table"),
        *("tbody", "tfoot", "thead", "tr", "ul"),
    }
)
_SPACE = re.compile(r"\s+")


def split_html(text: str) -> tuple[str, list[Passage]]:
    """The document's title, empty without one, and its passages; `line` is the source's."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.title.strip(), split_items(reader.items)


class _Reader(HTMLParser):
    """Collects blocks and headings."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.items: list[Item] = []
        self._parts: list[str] = []
        self._line = 0
        self._level = 0
        self._skipped = ""
        self._skipped_depth = 0
        self._in_title = False
        self._in_pre = False

    def close(self) -> None:
        super().close()
        self._flush()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if self._skipped:
            self._skipped_depth += tag == self._skipped
        elif tag in _SKIPPED:
            self._skipped, self._skipped_depth = tag, 1
        elif tag == "title":
            self._in_title = not self.title
        elif tag in _HEADINGS:
            self._flush()
            self._level = _HEADINGS[tag]
        elif tag in ("td", "th"):
            if self._parts:
                self._parts.append(" | ")
        elif tag == "br":
            if self._parts:
                self._parts.append("\n" if self._in_pre else " ")
        elif tag in _BLOCKS:
            self._flush()
            self._in_pre = self._in_pre or tag == "pre"
            if tag == "li":
                self._add("- ")

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            self._skipped_depth -= tag == self._skipped
            if not self._skipped_depth:
                self._skipped = ""
        elif tag == "title":
            self._in_title = False
        elif tag in _HEADINGS or tag in _BLOCKS:
            self._flush()
            self._level = 0 if tag in _HEADINGS else self._level
            self._in_pre = self._in_pre and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._skipped:
            self._add(data)

    def _add(self, data: str) -> None:
        if not self._parts:
            bare = data.lstrip()
            if not bare:
                return
            self._line = self.getpos()[0] + data[: len(data) - len(bare)].count("\n")
        self._parts.append(data)

    def _flush(self) -> None:
        text = "".join(self._parts)
        text = text.strip("\n").rstrip() if self._in_pre else _SPACE.sub(" ", text).strip()
        self._parts = []
        if not text or text == "-":
            # A heading may begin with a block, and its words come then.
            return
        level, self._level = self._level, 0
        block = Block(self._line, text)
        is_heading = level and len(text) <= HEADING_LENGTH_MAX
        # Also one within `pre` is one line: headings are kept as lines.
        title = _SPACE.sub(" ", text)
        self.items.append(Item(block, level, title) if is_heading else Item(block))
