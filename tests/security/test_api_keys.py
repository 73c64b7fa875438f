"""What passes for the text of an API key, and what doesn't."""

import base64
import zlib
from itertools import count

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.ids import new_id
from mesh.security.api_keys import (
    KEY_LENGTH,
    ApiKeyText,
    hmac_of,
    new_api_key,
    parse_api_key,
    same_hmac,
)

KEY = new_api_key().text
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567_"


def test_a_new_key_is_what_it_parses_to() -> None:
    key = new_api_key()
    assert parse_api_key(key.text) == key
    assert len(key.text) == KEY_LENGTH
    assert key.text.split("_")[1] == key.id


def test_a_key_has_256_random_bits_of_its_own() -> None:
    secrets = {new_api_key().text.split("_")[2] for _ in range(500)}
    assert len(secrets) == 500
    for secret in secrets:
        assert len(base64.b32decode(secret.upper() + "====")) == 32
    # Each of the 256 bits is set in about half of them.
    bits = [int.from_bytes(base64.b32decode(each.upper() + "====")) for each in secrets]
    counts = [sum(value >> bit & 1 for value in bits) for bit in range(256)]
    assert 150 < min(counts) <= max(counts) < 350


def test_neither_object_nor_error_shows_a_key() -> None:
    key = new_api_key()
    assert key.text not in f"{key} {key!r}"


def test_what_is_stored_depends_on_every_character_and_on_the_pepper() -> None:
    key, pepper = new_api_key(), b"p" * 32
    stored = hmac_of(pepper, key)
    assert len(stored) == 32
    assert same_hmac(stored, hmac_of(pepper, ApiKeyText(key.id, key.text)))
    assert not same_hmac(stored, hmac_of(b"q" * 32, key))
    assert not same_hmac(stored, hmac_of(pepper, ApiKeyText(key.id, key.text[:-1] + "x")))


@given(st.integers(0, KEY_LENGTH - 1), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_known_without_looking_anything_up(place: int, letter: str) -> None:
    changed = KEY[:place] + letter + KEY[place + 1 :]
    assert (parse_api_key(changed) is None) == (changed != KEY)


@given(st.text(max_size=200))
@example("")
@example("weft_")
@example("weft_" * 20)
@example("x" * KEY_LENGTH)
@example("\ud800" * KEY_LENGTH)
@example("weft_" + "\u0661" * (KEY_LENGTH - 5))
def test_garbage_is_no_key_and_no_error(text: str) -> None:
    assert parse_api_key(text) is None


@pytest.mark.parametrize(
    "text",
    [
        KEY.upper(),
        KEY + "\n",
        " " + KEY[1:],
        KEY[:-1],
        KEY + "0",
        KEY.replace("weft_", "left_", 1),
        KEY.replace("_", "-"),
        KEY[:-1] + "\n",
        KEY[: KEY_LENGTH - 1] + "\x00",
        KEY.encode().decode("utf-16-le", "ignore"),
        KEY * 10_000,
        f"weft_{new_id()}__{KEY[33:]}",
        KEY[:-8] + "G" * 8,
    ],
    ids=map(str, count()),  # the same in each process that runs tests, as the key isn't
)
def test_other_spellings_of_a_key_are_none(text: str) -> None:
    assert parse_api_key(text) is None


def test_the_bits_that_the_secret_has_no_room_for_are_zero() -> None:
    """Else one secret would have sixteen spellings."""
    body = KEY[:-9]
    for letter in "abcdefghijklmnopqrstuvwxyz234567":
        other = body[:-1] + letter
        text = f"{other}_{zlib.crc32(other.encode()):08x}"
        assert (parse_api_key(text) is not None) == (letter in "aq")
