"""Reading HTML and PDF files, whole ones and broken ones."""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.vectors.html_text import split_html
from services.vectors.pdf_text import Unreadable, split_pdf
from services.vectors.reading import (
    HTML,
    LENGTH_HERE_MAX,
    PDF,
    Bounds,
    Readers,
    Source,
    read_source,
)
from services.vectors.settings import VectorsSettings
from tests.support.pdf import pdf_of
from weft.vectors.v1 import collections_pb2

PAGE = """<!doctype html>
<html><head><title>The Guide</title><style>p { color: red }</style></head>
<body><script>var secret = "<p>not text</p>";</script>
<h1>Whales &amp; others</h1>
<p>They <b>sing</b>,
   and dive.</p>
<ul><li>Blue<li>Grey</ul>
<h2>Diet</h2>
<table><tr><th>What</th><th>How much</th></tr><tr><td>Krill</td><td>4 t</td></tr></table>
<pre>
def eat():
    pass
</pre>
<template><p>not shown</p></template>
<h2>Nothing stands here</h2>
</body></html>
"""
READABLE = {"pages_max": 10, "length_max": 10_000}
BOUNDS = Bounds(10, 10_000, 100)


def html(text: str) -> Source:
    return Source(HTML, text)


def pdf(content: bytes) -> Source:
    return Source(PDF, content=content)


def test_html_is_split_at_headings_and_without_what_is_not_read() -> None:
    title, passages = split_html(PAGE)
    assert title == "The Guide"
    assert [(each.headings, each.line, each.text) for each in passages] == [
        (("Whales & others",), 5, "They sing, and dive.\n\n- Blue\n\n- Grey"),
        (
            ("Whales & others", "Diet"),
            9,
            "What | How much\n\nKrill | 4 t\n\ndef eat():\n    pass",
        ),
        (("Whales & others", "Nothing stands here"), 15, "Nothing stands here"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no tags at all", ["no tags at all"]),
        ("<p>one<p>two", ["one\n\ntwo"]),
        ("<h1>only", ["only"]),
        ("</div></p>after", ["after"]),
        ("a &lt;b&gt; &#x41; &bogus;", ["a <b> A &bogus;"]),
        ("<script>never closed", []),
        ("<svg><title>x</title></svg>seen", ["seen"]),
        ("", []),
    ],
)
def test_broken_html_is_read_as_far_as_it_goes(text: str, expected: list[str]) -> None:
    assert [each.text for each in split_html(text)[1]] == expected


tags = st.sampled_from(["<p>", "</p>", "<h1>", "</h2>", "<pre>", "</pre>", "<li>", "<td>", "<br>"])
words = st.sampled_from([" one", "two ", "\n", "x" * 1_500, "&amp;", "<", "<!--", "-->", "<svg>"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<h1><div>One</div></h1><p>word", [(("One",), "word")]),
        ("<h1></h1><p>word</p>", [((), "word")]),
        ("<pre><h2>one\ntwo\n\nthree</h2></pre>word", [(("one two three",), "word")]),
    ],
)
def test_a_heading_is_one_line_whatever_it_is_made_of(
    text: str, expected: list[tuple[tuple[str, ...], str]]
) -> None:
    _, passages = split_html(text)
    assert [(passage.headings, passage.text) for passage in passages] == expected


@given(st.lists(tags | words, max_size=30).map("".join))
def test_html_begins_on_its_lines_and_is_bounded(text: str) -> None:
    _, passages = split_html(text)
    count = text.count("\n") + 1
    for each in passages:
        assert each.text.strip()
        assert 1 <= each.line <= count
        assert len(each.text) <= 3_000
        assert len(each.headings) <= 6


def test_a_pdf_is_split_by_pages_under_the_headings_of_its_outline() -> None:
    content = pdf_of(
        [["Whales sing.", "They dive (deep)."], ["Bees dance."]],
        title="Animals",
        outline=["Whales", "Bees"],
    )
    title, passages = split_pdf(content, 10, 10_000)
    assert title == "Animals"
    assert [(each.headings, each.page, each.line, each.text) for each in passages] == [
        (("Whales",), 1, 1, "Whales sing.\nThey dive (deep)."),
        (("Bees",), 2, 1, "Bees dance."),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"garbage", "isn't a PDF"),
        (b"", "isn't a PDF"),
        (b"%PDF-1.4\n%%EOF", "isn't a PDF"),
        (pdf_of([["one"]] * 11), "has 11 pages; at most 10"),
        (pdf_of([["word " * 2_500]]), "more than 10000 characters"),
        (pdf_of([[], []]), "no text"),
    ],
)
def test_what_can_not_be_read_is_refused_with_the_reason(content: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        split_pdf(content, **READABLE)


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_a_damaged_pdf_is_read_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    content = bytearray(pdf_of([["Whales sing."], ["Bees dance."]], outline=["A", "B"]))
    for _ in range(chance.randint(1, 12)):
        place = chance.randrange(len(content))
        if chance.random() < 0.2:
            del content[place : place + chance.randint(1, 60)]
        else:
            content[place] = chance.randrange(256)
    try:
        passages = read_source((pdf(bytes(content)), BOUNDS)).passages
    except Unreadable:
        return
    assert passages


def test_code_points_that_are_no_text_are_replaced() -> None:
    # What the file's font says its first three glyphs stand for.
    letters = b"3 beginbfchar <41> <d800> <42> <0000> <43> <0063> endbfchar"
    stream = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(letters), letters)
    font = b"/BaseFont /Helvetica"
    content = pdf_of([["ABC"]], outline=["A"]).replace(font, font + b" /ToUnicode 99 0 R")
    before, _, rest = content.partition(b"xref\n")
    (passage,) = split_pdf(
        before + b"99 0 obj\n" + stream + b"\nendobj\nxref\n" + rest, **READABLE
    )[1]
    assert passage.text == "?\ufffdc"


def bomb(size_bytes: int) -> bytes:
    """A file of some kilobytes whose one page is that long."""
    drawn = zlib.compress(b"BT (a) Tj " + b" " * size_bytes, 9)
    plain = b"<< /Length %d >>" % len("BT /F1 12 Tf 14 TL 72 720 Td  ET")
    packed = b"<< /Filter /FlateDecode /Length %d >>" % len(drawn)
    before, _, rest = pdf_of([[]]).partition(plain)
    _, _, after = rest.partition(b"endstream")
    return before + packed + b"\nstream\n" + drawn + b"\nendstream" + after


@pytest.fixture
async def readers() -> AsyncIterator[Readers]:
    made = Readers(VectorsSettings(reading_seconds_max=120, readings_max=2))
    yield made
    await made.close()


async def test_a_file_that_takes_too_long_is_refused_and_the_next_is_read() -> None:
    readers = Readers(VectorsSettings(reading_seconds_max=2))
    # Python's parser looks through the rest for the end of each comment: for minutes.
    with pytest.raises(Unreadable, match="takes longer than 2 s"):
        await readers.read("acme", html("<!--" * 250_000))

    assert (await readers.read("acme", pdf(pdf_of([["Whales."]])))).passages[0].text == "Whales."
    await readers.close()


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 1_000_000,
        b"%PDF-1.4\n" + b"1 0 obj\n<<" * 50_000,
        bomb(300 << 20),
        pdf_of([["one"]])[:-200],
    ],
    ids=["zeros", "nested", "bomb", "cut"],
)
async def test_a_hostile_file_is_refused_and_the_next_is_read(
    readers: Readers, content: bytes
) -> None:
    with pytest.raises(Unreadable):
        await readers.read("acme", pdf(content))
    assert (await readers.read("acme", html("<p>fine"))).passages[0].text == "fine"


MARKDOWN, PLAIN = collections_pb2.MEDIA_TYPE_MARKDOWN, collections_pb2.MEDIA_TYPE_PLAIN


@pytest.mark.parametrize("media_type", [MARKDOWN, PLAIN, HTML])
async def test_a_text_of_too_many_passages_is_refused_wherever_it_is_read(
    media_type: "collections_pb2.MediaType.ValueType",
) -> None:
    readers = Readers(VectorsSettings(document_passages_max=10))
    for length in (LENGTH_HERE_MAX // 2, 2 * LENGTH_HERE_MAX):
        text = ("word " * 360 + "\n\n") * (length // 1_800)
        with pytest.raises(Unreadable, match=r"splits into \d+ passages; at most 10"):
            await readers.read("acme", Source(media_type, text.replace("\n\n", "<p>\n\n")))
    await readers.close()


async def test_a_long_text_of_short_lines_is_ended_with_its_process() -> None:
    readers = Readers(VectorsSettings(reading_seconds_max=0.01))
    with pytest.raises(Unreadable, match=r"takes longer than 0\.01 s"):
        await readers.read("acme", Source(MARKDOWN, "# a\n" * 500_000))
    assert (await readers.read("acme", Source(MARKDOWN, "# a\n\nb"))).passages[0].text == "b"
    await readers.close()


async def test_a_tenants_files_do_not_hold_up_anothers() -> None:
    readers = Readers(VectorsSettings(reading_seconds_max=120, readings_max=2))
    slow = html("<!--" * 250_000)
    theirs = [asyncio.create_task(readers.read("theirs", slow)) for _ in range(3)]
    assert (await readers.read("ours", html("<p>fine"))).passages[0].text == "fine"
    assert not any(each.done() for each in theirs)
    for each in theirs:
        each.cancel()
    await asyncio.wait(theirs)
    await readers.close()
