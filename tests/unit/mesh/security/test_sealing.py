"""Seals open in their place only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import DataDamaged
from mesh.security.aead import KEY_BYTES, NONCE_BYTES, TAG_BYTES, bound
from mesh.security.keyring import DataKey
from mesh.security.sealing import RowSeal, StreamSeal
from tests.support.keys import memory_keyring

NAMES = st.text("ab.\x00", max_size=4)
PLACES = st.tuples(NAMES, st.sampled_from(("k1", "k2")), st.integers(0, 3), NAMES)
SECRET = bytes(range(KEY_BYTES))


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_no_two_lists_of_parts_are_bound_alike(some: list[str], others: list[str]) -> None:
    assert (bound(some) == bound(others)) == (some == others)


@given(PLACES, PLACES, st.binary(max_size=40))
def test_a_payload_opens_where_it_was_sealed_and_nowhere_else(
    here: tuple[str, str, int, str], there: tuple[str, str, int, str], plain: bytes
) -> None:
    stream, key_id, revision, event_type = here
    sealed = StreamSeal(stream, DataKey(key_id, SECRET)).seal(revision, event_type, plain)
    assert len(sealed) == NONCE_BYTES + len(plain) + TAG_BYTES
    # The same key's bytes under another id: what is bound is the place, not the key alone.
    other_stream, other_key_id, other_revision, other_type = there
    opening = StreamSeal(other_stream, DataKey(other_key_id, SECRET))
    if here == there:
        assert opening.open(other_revision, other_type, sealed) == plain
    else:
        with pytest.raises(DataDamaged):
            opening.open(other_revision, other_type, sealed)


def test_the_same_payload_is_never_sealed_alike() -> None:
    seal = StreamSeal("state.acme.bot.s1", DataKey("k1", SECRET))
    assert len({seal.seal(1, "t", b"same") for _ in range(100)}) == 100


def test_a_key_does_not_show_itself() -> None:
    key = DataKey("k1", SECRET)
    assert SECRET.hex() not in repr(key)
    assert repr(SECRET) not in repr(key)


async def test_a_row_opens_with_its_tables_key_in_its_place() -> None:
    keyring = memory_keyring()
    seal, same = [await RowSeal.of(keyring, "sessions") for _ in range(2)]
    other = await RowSeal.of(keyring, "agents")
    sealed = seal.seal("row", b"plain")
    assert same.open("row", sealed) == b"plain"
    assert same.id == seal.id != other.id
    for refusing, row, text in (
        *((seal, "another", sealed), (other, "row", sealed)),
        *((seal, "row", sealed[:-1]), (seal, "row", b"")),
    ):
        with pytest.raises(DataDamaged):
            refusing.open(row, text)
