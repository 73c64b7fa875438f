"""The text of an HTML page, for a model to read.

Not by `html.parser`: it takes time with the square of the length for pages such as `<!--<!--`
(2.5 s for 40 kB, measured on Python 3.11), and pages come from anybody. This one looks at each
character a few times, and needs no tree.
"""

import html
import re
from dataclasses import dataclass

_SKIPPED = frozenset(("script", "style", "template", "noscript", "svg", "iframe", "textarea"))
_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figure"),
        *("footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main"),
        *("nav", "ol", "p", "pre", "section", "table", "td", "th", "title", "tr", "ul"),
    )
)
_NAME = re.compile(r"/?([a-zA-Z][a-zA-Z0-9-]*)")
_ENDS = {name: re.compile(f"</{name}", re.IGNORECASE) for name in (*_SKIPPED, "title")}
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r"\s*\n\s*")


@dataclass(frozen=True, slots=True)
class HtmlText:
    """What a page says, and what it is called; empty where it doesn't say."""

    text: str
    title: str


def html_text(page: str) -> HtmlText:
    """The page's text, a line for each block, without markup, scripts and styles."""
    parts: list[str] = []
    title, place = "", 0
    while (opened := page.find("<", place)) >= 0:
        parts.append(page[place:opened])
        if page.startswith("<!--", opened):
            place = page.find("-->", opened + 4) + 3
            if place < 3:
                return _made(parts, title)
            continue
        closed = page.find(">", opened)
        if closed < 0:
            return _made(parts, title)
        named = _NAME.match(page, opened + 1, closed)
        if named is None and page[opened + 1] not in "!?/":
            parts.append("<")
            place = opened + 1
            continue
        place = closed + 1
        name = named[1].lower() if named else ""
        if name in _BLOCKS:
            parts.append("\n")
        if name in _ENDS and page[opened + 1] != "/":
            end = _ENDS[name].search(page, place)
            if end is None:
                return _made(parts, title)
            if name == "title" and not title:
                title = page[place : end.start()]
            place = end.start()
    parts.append(page[place:])
    return _made(parts, title)


def _made(parts: list[str], title: str) -> HtmlText:
    return HtmlText(_tidy("".join(parts)), _tidy(title).replace("\n", " "))


def _tidy(text: str) -> str:
    return _LINES.sub("\n", _SPACES.sub(" ", html.unescape(text))).strip()
