"""Hashed words: ids that need no vocabulary, equal on every machine."""

import zlib

from fedistill.data.text import hash_texts
from fedistill.models.registry import hashed_words, preprocessing
from fedistill.models.signature import Preprocessing


def test_ids_are_remainders_of_checksums() -> None:
    """CRC-32 of "a" is 0xE8B7BE43 (3904355907) and of "the" 0x3C456DE6 (1011183078)."""
    assert (zlib.crc32(b"a"), zlib.crc32(b"the")) == (3904355907, 1011183078)
    ids = hash_texts(["The, a", "a a a a a"], length=4, buckets=1000)
    assert ids[0, [0, 2, 3]].tolist() == [79, 908, 0]
    assert ids[1].tolist() == [908] * 4
    assert ids.dtype == "int32"


def test_a_text_without_words_is_one_word() -> None:
    assert hash_texts(["", " \n"], length=3, buckets=7).tolist() == [[1, 0, 0]] * 2


def test_names_stand_for_preprocessing() -> None:
    assert preprocessing(hashed_words(500, None)) == Preprocessing(buckets=500)
    assert preprocessing(hashed_words(500, 32)) == Preprocessing(buckets=500, length=32)
