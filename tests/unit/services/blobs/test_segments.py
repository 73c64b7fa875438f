"""Sealing in segments: any range opens, and nothing that was changed, moved or cut."""

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import DataDamaged
from mesh.security.aead import TAG_BYTES
from services.blobs.domain.names import BlobKey, DataObject
from services.blobs.segments import Segments

OF = DataObject(BlobKey("acme", "b1"), "0" * 26)
KEY = bytes(range(32))
SIZE = 8


def sealed(data: bytes, segments: Segments) -> bytes:
    parts = [data[start : start + SIZE] for start in range(0, len(data) or 1, SIZE)]
    last = len(parts) - 1
    return b"".join(
        segments.seal(number, part, last=number == last) for number, part in enumerate(parts)
    )


def opened(
    stored: bytes, segments: Segments, size: int, offset: int, length: int, at_once: int
) -> bytes:
    found = b""
    for window in segments.windows(size, offset, length, at_once):
        part = stored[window.start : window.start + window.length]
        found += b"".join(segments.open_window(window, part))
    return found


@given(st.binary(max_size=100), st.integers(0, 110), st.integers(0, 110), st.integers(1, 5))
def test_any_range_opens(data: bytes, offset: int, length: int, at_once: int) -> None:
    segments = Segments(OF, KEY, SIZE)
    offset = min(offset, len(data))
    length = min(length, len(data) - offset)
    found = opened(sealed(data, segments), segments, len(data), offset, length, at_once)
    assert found == data[offset : offset + length]


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_changed_bit_opens_nowhere(data: bytes, chosen: st.DataObject) -> None:
    segments = Segments(OF, KEY, SIZE)
    stored = bytearray(sealed(data, segments))
    stored[chosen.draw(st.integers(0, len(stored) - 1))] ^= 1 << chosen.draw(st.integers(0, 7))
    with pytest.raises(DataDamaged):
        opened(bytes(stored), segments, len(data), 0, len(data), 2)


def test_segments_cant_be_swapped_cut_or_taken_for_the_last() -> None:
    segments = Segments(OF, KEY, SIZE)
    data = os.urandom(3 * SIZE)
    stored = sealed(data, segments)
    one = SIZE + TAG_BYTES
    first, second, third = stored[:one], stored[one : 2 * one], stored[2 * one :]
    for wrong in (second + first + third, first + first + third, first + second + second):
        with pytest.raises(DataDamaged):
            opened(wrong, segments, len(data), 0, len(data), 4)
    for size, cut in ((2 * SIZE, first + second), (3 * SIZE, first + second), (SIZE, first)):
        with pytest.raises(DataDamaged):
            opened(cut, segments, size, 0, size, 4)


def test_a_blob_doesnt_open_as_another_one() -> None:
    stored = sealed(b"x" * 20, Segments(OF, KEY, SIZE))
    others = (
        Segments(replace(OF, key=BlobKey("acme", "b2")), KEY, SIZE),
        Segments(replace(OF, key=BlobKey("globex", "b1")), KEY, SIZE),
        Segments(replace(OF, etag="1" * 26), KEY, SIZE),
        Segments(OF, bytes(32), SIZE),
    )
    for other in others:
        with pytest.raises(DataDamaged):
            opened(stored, other, 20, 0, 20, 4)


def test_a_range_reads_only_its_segments() -> None:
    segments = Segments(OF, KEY, SIZE)
    (window,) = segments.windows(100, 33, 4, 16)
    assert (window.start, window.length) == (4 * (SIZE + TAG_BYTES), SIZE + TAG_BYTES)


@given(
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    st.integers(0, 2**63),
    st.booleans(),
)
def test_an_objects_name_says_what_it_is(tenant: str, blob: str, at: int, session: bool) -> None:
    named = DataObject(BlobKey(tenant, blob), "0" * 26, at, session)
    assert DataObject.parse(str(named)) == named


@pytest.mark.parametrize(
    "text", ["", "data/a/b", "data/a/b.x.0.0", "headers/a/b", f"data/a/../b.{'0' * 26}.0.0"]
)
def test_what_isnt_an_objects_name_is_none(text: str) -> None:
    assert DataObject.parse(text) is None
