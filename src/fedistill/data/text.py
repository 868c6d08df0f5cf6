"""Texts: a vocabulary from the public set alone, and token ids of a fixed length.

Private texts never influence the vocabulary: a word that only clients use becomes ``[UNK]``, so the
vocabulary reveals nothing about the clients' texts.

Words are those of Unicode (UAX #29) as ICU finds them, in lower case and in normal form NFC. ICU has
dictionaries for Burmese, Chinese, Japanese, Khmer, Lao and Thai, which put no spaces between words.
Accents and vowel signs are kept; punctuation marks and symbols are words.
"""

import functools
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from icu4py.breakers import WordBreaker
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import EVERYONE, Frame, decode, encode
from fedistill.config.task import Text
from fedistill.errors import ExperimentError
from fedistill.models.signature import Preprocessing, Signature
from fedistill.models.token_ids import PAD, UNKNOWN, id_shift

_SEPARATOR = "\x1f"
_SPLIT = pre_tokenizers.Split(_SEPARATOR, "removed")
"""Marks the tokenizers that take the words of `words_of`, joined by the separator."""
_RUNS = re.compile(
    "[{0}]+|[^{0}]+".format("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f")
)
"""Runs of Thai, Lao, Khmer and Burmese, and what is between them.

ICU sees no boundary between a word of these scripts and a word of another one that follows without a space.
"""
_INVISIBLE = dict.fromkeys(
    map(ord, "\u00ad\ufeff\u2060\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)
"""Soft hyphens, byte order marks and marks of direction, which do not make another word of a word."""


def words_of(text: str) -> Iterator[str]:
    """Yield the words of a text, without white space and control characters.

    Source: ICU's word boundaries (UAX #29, with dictionaries) in the root locale, on lower-case text in NFC.
    """
    plain = unicodedata.normalize("NFC", text.lower().translate(_INVISIBLE))
    for run in _RUNS.findall(plain):
        for word in WordBreaker(run, "root"):
            if not (word.isspace() or all(unicodedata.category(letter)[0] in "CZ" for letter in word)):
                yield word


def build_tokenizer(public: Sequence[str], settings: Text) -> Tokenizer:
    """Return the tokenizer of a task: the user's own file, or words counted in the public texts.

    Raises:
        ExperimentError: there is neither, or the file is not a tokenizer.
    """
    if settings.tokenizer is not None:
        tokenizer = _from_file(settings.tokenizer, "task.text.tokenizer")
    elif not public:
        raise ExperimentError(
            "a text task builds its vocabulary from the public set: set task.public, or name a"
            " tokenizer.json in task.text.tokenizer"
        )
    else:
        tokenizer = Tokenizer(WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = _SPLIT
        trainer = WordLevelTrainer(
            vocab_size=settings.vocabulary, special_tokens=[PAD, UNKNOWN], show_progress=False
        )
        tokenizer.train_from_iterator((_SEPARATOR.join(words_of(text)) for text in public), trainer)
    return _of_length(tokenizer, settings.length)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return the number of token ids that `encode_texts` may return."""
    return int(max(tokenizer.get_vocab().values())) + 1 + id_shift(tokenizer)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int32]:
    """Return token ids, int32 (n, length), cut or padded at the end; 0 always means padding.

    Texts without any token become one unknown word (id 1 in vocabularies of our own), since models could not
    average over zero tokens.
    """
    if takes_words(tokenizer):
        length = _length(tokenizer)
        texts = [_SEPARATOR.join(islice(words_of(text), length)) for text in texts]
    encodings = tokenizer.encode_batch(list(texts))
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int32)
    kept = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int32)
    shift = id_shift(tokenizer)
    ids = (ids + shift) * kept
    empty = (ids == 0).all(axis=1)
    unknown = unknown_id(tokenizer)
    ids[empty, 0] = 1 if unknown is None else unknown
    return ids


def hash_texts(texts: Sequence[str], length: int, buckets: int) -> NDArray[np.int32]:
    """Return ids of hashed words, int32 (n, length), from 1 to ``buckets``, cut or padded with 0 at the end.

    Equal words have equal ids on every machine, without a vocabulary. Texts without any word become one empty
    word.
    """
    ids = np.zeros((len(texts), length), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = list(islice(words_of(text), length)) or [""]
        row[: len(words)] = [zlib.crc32(word.encode()) % buckets + 1 for word in words]
    return ids


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that `encode_texts` returns for unknown words, or None if the tokenizer knows all."""
    known = [tokenizer.token_to_id(name) for name in (UNKNOWN, "<unk>")]
    return next((token + id_shift(tokenizer) for token in known if token is not None), None)


def takes_words(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer looks up the words of `words_of`, joined by U+001F."""
    own = tokenizer.pre_tokenizer
    return own is not None and own.__getstate__() == _SPLIT.__getstate__()


@functools.lru_cache(maxsize=16)
def tokenizer_for(frame: bytes, length: int, wanted: Preprocessing) -> Tokenizer:
    """Return the tokenizer of models with this preprocessing: their own, or the task's from its set-up frame.

    Args:
        length: tokens kept per text, unless the preprocessing sets its own length.

    Raises:
        ExperimentError: the model's own tokenizer cannot be read.
    """
    if wanted.tokenizer is None:
        (section,) = decode(frame).sections
        tokenizer = Tokenizer.from_str(zlib.decompress(section).decode())
    else:
        tokenizer = _from_file(wanted.tokenizer, "model: preprocessing.tokenizer")
    return _of_length(tokenizer, wanted.length or length)


def open_tokenizer(path: str, length: int, place: str) -> Tokenizer:
    """Return the tokenizer in a file, which keeps this many tokens per text; ``place`` is for messages.

    Raises:
        ExperimentError: there is no such file, or it is not a tokenizer.
    """
    return _of_length(_from_file(path, place), length)


def signature_of(tokenizer: Tokenizer, classes: int) -> Signature:
    """Return the signature of models that read texts with this tokenizer."""
    return Signature("text", (_length(tokenizer),), classes, vocabulary_size(tokenizer))


def vocabulary_frame(tokenizer: Tokenizer) -> bytes:
    """Return the set-up frame that carries the tokenizer to clients without the public set."""
    description = tokenizer.to_str(pretty=False).encode()
    return encode(Frame(Kind.VOCABULARY, 0, EVERYONE, (zlib.compress(description, 9),)))


def _length(tokenizer: Tokenizer) -> int:
    truncation = tokenizer.truncation
    assert truncation is not None, "set where the tokenizer was made"
    return int(truncation["max_length"])


def _of_length(tokenizer: Tokenizer, length: int) -> Tokenizer:
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return tokenizer


def _from_file(path: str, place: str) -> Tokenizer:
    if not Path(path).is_file():
        raise ExperimentError(f"{place} = {path}: there is no such file")
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises a bare Exception for a bad file
        raise ExperimentError(f"{place} = {path}: not a tokenizer ({error})") from None
