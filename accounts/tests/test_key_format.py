"""The text of a key: shape, checksum, peppers. Pure."""

from __future__ import annotations

import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.keys import ALPHABET, SECRET_CHARS, Peppers, checksum, is_well_formed, make_key

SECRETS = st.text(ALPHABET, min_size=22, max_size=64)


def key_of(secret):
    return f"gw_live_{secret}_{checksum(secret)}"


def test_it_has_the_shape_of_the_contract():
    key = make_key()

    assert re.fullmatch(r"gw_live_[0-9A-Za-z]{32}_[0-9A-Za-z]{6}", key)
    assert is_well_formed(key)


def test_no_two_are_alike():
    assert len({make_key() for _ in range(1000)}) == 1000


def test_it_uses_all_of_the_alphabet():
    seen = set("".join(make_key().split("_")[2] for _ in range(200)))

    assert seen == set(ALPHABET)
    assert len(ALPHABET) == 62
    assert SECRET_CHARS >= 22


def test_the_checksum_is_the_crc32_of_prefix_and_secret_in_base62():
    secret = "0" * 32
    number = zlib.crc32(b"gw_live_" + secret.encode())

    digits = checksum(secret)

    value = 0
    for digit in digits:
        value = value * 62 + ALPHABET.index(digit)
    assert len(digits) == 6
    assert value == number


def test_a_small_checksum_is_padded():
    small = next(s for s in (f"{i:022d}" for i in range(100_000)) if checksum(s)[0] == "0")

    assert len(checksum(small)) == 6
    assert is_well_formed(key_of(small))


@given(SECRETS)
def test_every_secret_of_22_to_64_characters_makes_a_key(secret):
    assert is_well_formed(key_of(secret))


@given(SECRETS, st.data())
def test_any_single_wrong_character_is_refused(secret, data):
    key = key_of(secret)
    start = len("gw_live_")
    places = [i for i in range(start, len(key)) if key[i] != "_"]
    place = data.draw(st.sampled_from(places))
    wrong = data.draw(st.sampled_from([c for c in ALPHABET if c != key[place]]))

    assert not is_well_formed(key[:place] + wrong + key[place + 1 :])


@given(SECRETS, st.data())
def test_two_neighbours_swapped_are_refused(secret, data):
    place = data.draw(st.integers(0, len(secret) - 2))
    swapped = secret[:place] + secret[place + 1] + secret[place] + secret[place + 2 :]

    typo = f"gw_live_{swapped}_{checksum(secret)}"

    assert is_well_formed(typo) == (swapped == secret)


@given(st.text(max_size=100))
def test_no_text_at_all_makes_it_raise(text):
    assert is_well_formed(text) in (False, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: "",
        lambda key: key[:-1],
        lambda key: key + "0",
        lambda key: key + "\n",
        lambda key: " " + key,
        lambda key: key.upper(),
        lambda key: key.replace("gw_live_", "gw_test_"),
        lambda key: key.removeprefix("gw_live_"),
        lambda key: key.replace("_", "-"),
        lambda key: key[:20] + "é" + key[21:],
        lambda key: key_of("a" * 21),
        lambda key: key_of("a" * 65),
        lambda key: key_of("a" * 31 + "_"),
        lambda key: key_of("٣" * 32),
    ],
)
def test_what_is_no_key_is_refused(change):
    assert not is_well_formed(change(key_of("a" * 32)))


class TestPeppers:
    NEW, OLD = "n" * 16, "o" * 16

    def test_the_first_is_the_current_one(self):
        peppers = Peppers.parse(f"2:{self.NEW},1:{self.OLD}")

        assert peppers.current_version == 2
        assert peppers.digest("key") == Peppers.parse(f"2:{self.NEW}").digest("key")

    def test_a_stored_key_is_looked_for_under_every_pepper(self):
        peppers = Peppers.parse(f" 2:{self.NEW} , 1:{self.OLD} ,")
        before = Peppers.parse(f"1:{self.OLD}")

        assert peppers.digests("key") == [peppers.digest("key"), before.digest("key")]

    def test_a_digest_is_an_hmac_sha256(self):
        import hashlib
        import hmac

        expected = hmac.new(self.OLD.encode(), b"key", hashlib.sha256).hexdigest()

        assert Peppers.parse(f"1:{self.OLD}").digest("key") == expected

    def test_a_pepper_may_hold_colons(self):
        assert Peppers.parse("1:a:b:" + "c" * 16).by_version == ((1, b"a:b:" + b"c" * 16),)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "at least one entry"),
            (" , ", "at least one entry"),
            ("n" * 16, "<version>:<pepper"),
            ("x:" + "n" * 16, "<version>:<pepper"),
            ("-1:" + "n" * 16, "<version>:<pepper"),
            (":" + "n" * 16, "<version>:<pepper"),
            ("1:tooshort", "16 characters"),
            ("1:" + "n" * 16 + ",1:" + "o" * 16, "each version once"),
        ],
    )
    def test_it_says_what_is_wrong_with_the_setting(self, text, reason):
        with pytest.raises(ValueError, match=re.escape(reason)):
            Peppers.parse(text)

    def test_the_complaint_never_holds_the_pepper(self):
        with pytest.raises(ValueError) as caught:
            Peppers.parse("1:hush-hush")

        assert "hush" not in str(caught.value)
