"""Texts: the vocabulary comes from the public set alone, and tokens are what models are told they are."""

import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import EVERYONE, decode
from fedistill.config.task import Text
from fedistill.data.task import Task
from fedistill.data.text import build_tokenizer, encode_texts, vocabulary_size, words_of
from fedistill.errors import ExperimentError
from fedistill.models.signature import Preprocessing
from helpers.files import Files

Make = Callable[..., Task]
AS_THE_TASK = Preprocessing()
PUBLIC = ["The cat sat on the mat.", "A cat, a dog"]


def words(task: Task) -> dict[str, int]:
    """The vocabulary as a client reads it from the set-up frame."""
    frame = decode(task.vocabulary_frame)
    assert frame.kind == Kind.VOCABULARY
    assert frame.peer == EVERYONE
    tokenizer = Tokenizer.from_str(zlib.decompress(frame.sections[0]).decode())
    return dict(tokenizer.get_vocab())


def test_no_private_word_gets_an_id(make: Make, files: Files) -> None:
    # Each text has a word of its own, so the vocabulary tells which texts it was made from.
    texts = [f"secret{number} common" for number in range(30)]
    path = files.csv("train.csv", text=texts, label=[0, 1] * 15)
    task = make(format="csv", train=path, public=8, text={"length": 4})
    assert task.public is not None
    vocabulary = words(task)
    known = {word for word in vocabulary if word.startswith("secret")}
    assert set(vocabulary) == {"[PAD]", "[UNK]", "common", *known}
    assert task.signature.vocabulary == len(vocabulary)
    common = vocabulary["common"]
    public = {tuple(row) for row in task.public_inputs(AS_THE_TASK).tolist()}
    assert public == {(vocabulary[word], common, 0, 0) for word in known}
    assert len(public) == 8
    # All others are unknown words to everyone: nothing of them is left.
    private = [task.client_inputs(client, AS_THE_TASK) for client in range(len(task.clients))]
    for inputs in (*private, task.test_inputs(AS_THE_TASK)):
        assert {tuple(row) for row in inputs.tolist()} == {(1, common, 0, 0)}


def test_a_word_of_another_public_set_is_known_and_one_of_the_task_is_not(make: Make, files: Files) -> None:
    path = files.csv("train.csv", text=["planted common"] * 5 + ["other common"] * 5, label=[0, 1] * 5)
    public = files.csv("public.csv", text=["common ground", "other ground"])
    task = make(format="csv", train=path, public={"format": "csv", "train": public, "samples": 2})
    assert set(words(task)) == {"[PAD]", "[UNK]", "common", "ground", "other"}


def test_words_are_numbered_by_how_often_they_come() -> None:
    tokenizer = build_tokenizer(PUBLIC, Text(length=8))
    vocabulary = tokenizer.get_vocab()
    assert (vocabulary["[PAD]"], vocabulary["[UNK]"]) == (0, 1)
    # Twice: a, cat, the; once: the rest. Capitals are the same, and signs are words.
    assert {word for word, number in vocabulary.items() if 2 <= number <= 4} == {"a", "cat", "the"}
    assert set(vocabulary) - {"[PAD]", "[UNK]", "a", "cat", "the"} == {"sat", "on", "mat", "dog", ".", ","}
    assert vocabulary_size(tokenizer) == 11
    assert build_tokenizer(list(PUBLIC), Text(length=8)).get_vocab() == vocabulary


def test_a_small_vocabulary_keeps_the_frequent_words() -> None:
    public = [*(f"often{number} " * 5 for number in range(14)), "rare"]
    tokenizer = build_tokenizer(public, Text(length=8, vocabulary=16))
    assert vocabulary_size(tokenizer) == 16
    assert tokenizer.token_to_id("rare") is None
    assert all(tokenizer.token_to_id(f"often{number}") is not None for number in range(14))


def test_unknown_long_and_empty_texts() -> None:
    tokenizer = build_tokenizer(PUBLIC, Text(length=4))
    known = tokenizer.get_vocab()
    found = encode_texts(tokenizer, ["cat unseen DOG", "cat dog mat sat on", "", "   ", "[PAD]"])
    assert found.dtype == np.int32
    cat, dog, mat, sat = (known[word] for word in ("cat", "dog", "mat", "sat"))
    assert found.tolist() == [
        [cat, 1, dog, 0],
        [cat, dog, mat, sat],
        # Never nothing but padding: a model would have nothing to average.
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        # A text cannot write a special token: these are three words.
        [1, 1, 1, 0],
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # "I love Thailand very much", "I go to Tokyo Tower", "I like Peking duck", "I love the land of Laos".
        ("ฉันรักประเทศไทยมาก", ["ฉัน", "รัก", "ประเทศไทย", "มาก"]),
        ("東京タワーへ行きます。", ["東京タワー", "へ", "行き", "ます", "。"]),
        ("我喜欢北京烤鸭", ["我", "喜欢", "北京", "烤鸭"]),
        ("ຂ້ອຍຮັກປະເທດລາວ", ["ຂ້ອຍ", "ຮັກ", "ປະເທດ", "ລາວ"]),
        ("ខ្ញុំស្រឡាញ់ប្រទេស", ["ខ្ញុំ", "ស្រឡាញ់", "ប្រទេស"]),
        # Thai and another script without a space between them.
        ("รักEnglishมาก", ["รัก", "english", "มาก"]),
        # Vowel signs and accents make other words.
        ("किताब कीताब कुताब", ["किताब", "कीताब", "कुताब"]),
        ("Für fur, naïve", ["für", "fur", ",", "naïve"]),
        ("\u0646\u0627\u0645\u0647\u200c\u0647\u0627", ["\u0646\u0627\u0645\u0647\u200c\u0647\u0627"]),
        # A letter and its accent are the same letter however they are written.
        ("caf\u00e9 cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
        ("\ufeffco\u00adoperate\u200bnow\x00", ["cooperate", "now"]),
        ("Don't pay £3.50!", ["don't", "pay", "£", "3.50", "!"]),
        ("ΟΔΟΣ", ["οδος"[:-1] + "ς"]),
        ("\n\t \x00", []),
    ],
)
def test_words_of_any_language(text: str, words: list[str]) -> None:
    assert list(words_of(text)) == words


@given(st.text(max_size=60))
def test_words_are_what_the_text_has(text: str) -> None:
    words = list(words_of(text))
    assert all(words)
    assert not any(letter.isspace() for word in words for letter in (word[0], word[-1]))
    # What letters and digits there are is in the words, in order.
    kept = [letter for letter in unicodedata.normalize("NFC", text.lower()) if letter.isalnum()]
    assert [letter for letter in "".join(words) if letter.isalnum()] == kept


def test_languages_without_spaces_get_words_of_their_own() -> None:
    tokenizer = build_tokenizer(["ฉันรักประเทศไทยมาก", "日本語の文章"], Text(length=8))
    known = tokenizer.get_vocab()
    found = encode_texts(tokenizer, ["รักฉัน", "文章 日本語", "ปลา"])
    assert found[:2, :3].tolist() == [[known["รัก"], known["ฉัน"], 0], [known["文章"], known["日本語"], 0]]
    assert set(found[2].tolist()) == {0, 1}


def test_a_vocabulary_that_was_saved_splits_texts_as_before(tmp_path: Path) -> None:
    made = build_tokenizer(["ฉันรักประเทศไทยมาก", "naïve"], Text(length=4))
    made.save(str(tmp_path / "t.json"))
    again = build_tokenizer([], Text(length=4, tokenizer=str(tmp_path / "t.json")))
    texts = ["รักประเทศไทย", "Naïve"]
    assert encode_texts(again, texts).tolist() == encode_texts(made, texts).tolist()
    assert (encode_texts(again, texts)[:, 0] > 1).all()


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5), st.integers(4, 12))
def test_every_text_begins_with_a_token_and_ends_in_padding(texts: list[str], length: int) -> None:
    tokenizer = build_tokenizer(PUBLIC, Text(length=length))
    found = encode_texts(tokenizer, texts)
    assert found.shape == (len(texts), length)
    assert (found[:, 0] > 0).all()
    assert found.max() < vocabulary_size(tokenizer)


def test_a_text_task_without_words_to_count_is_refused(refused: Callable[..., str], files: Files) -> None:
    path = files.csv("train.csv", text=["a", "b"] * 5, label=[0, 1] * 5)
    assert refused(format="csv", train=path) == (
        "a text task builds its vocabulary from the public set: set task.public, or name a tokenizer.json in"
        " task.text.tokenizer"
    )


def own(path: Path, **vocabulary: int) -> str:
    names = {"PAD": "[PAD]", "UNK": "[UNK]", "pad": "<pad>", "unk": "<unk>"}
    named = {names.get(word, word): number for word, number in vocabulary.items()}
    unknown = next(word for word in named if word in ("[UNK]", "<unk>"))
    tokenizer = Tokenizer(WordLevel(named, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return str(path)


def test_a_tokenizer_of_ones_own_needs_no_public_set(make: Make, files: Files) -> None:
    path = own(files.folder / "t.json", PAD=0, UNK=1, cat=2, dog=3)
    train = files.csv("train.csv", text=[f"cat w{number}" for number in range(10)], label=[0, 1] * 5)
    task = make(format="csv", train=train, text={"tokenizer": path, "length": 4})
    assert task.signature.vocabulary == 4
    assert {tuple(row) for row in task.test_inputs(AS_THE_TASK).tolist()} == {(2, 1, 0, 0)}
    assert words(task) == {"[PAD]": 0, "[UNK]": 1, "cat": 2, "dog": 3}


def test_zero_is_padding_whatever_the_tokenizer_means_by_it(tmp_path: Path) -> None:
    # Without padding of its own, or with padding elsewhere, a tokenizer has a word at 0.
    no_padding = build_tokenizer([], Text(length=4, tokenizer=own(tmp_path / "a", cat=0, dog=1, UNK=2)))
    assert encode_texts(no_padding, ["cat dog", "x", ""]).tolist() == [
        [1, 2, 0, 0],
        [3, 0, 0, 0],
        [3, 0, 0, 0],
    ]
    assert vocabulary_size(no_padding) == 4
    elsewhere = build_tokenizer([], Text(length=4, tokenizer=own(tmp_path / "b", cat=0, pad=1, unk=2, dog=3)))
    assert encode_texts(elsewhere, ["cat dog", ""]).tolist() == [[1, 4, 0, 0], [3, 0, 0, 0]]
    assert vocabulary_size(elsewhere) == 5
    angular = build_tokenizer([], Text(length=4, tokenizer=own(tmp_path / "c", pad=0, unk=1, cat=2)))
    assert encode_texts(angular, ["cat", ""]).tolist() == [[2, 0, 0, 0], [1, 0, 0, 0]]
    assert vocabulary_size(angular) == 3


def test_ids_with_gaps_stay_inside_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = build_tokenizer([], Text(length=4, tokenizer=own(tmp_path / "a", PAD=0, UNK=1, cat=7)))
    assert encode_texts(tokenizer, ["cat"]).tolist() == [[7, 0, 0, 0]]
    assert vocabulary_size(tokenizer) == 8


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for content in (None, "no json", "{}"):
        if content is not None:
            bad.write_text(content)
        with pytest.raises(ExperimentError) as caught:
            build_tokenizer(PUBLIC, Text(tokenizer=str(bad)))
        said = "there is no such file" if content is None else "not a tokenizer ("
        assert str(caught.value).startswith(f"task.text.tokenizer = {bad}: {said}")
