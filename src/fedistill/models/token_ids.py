"""How token ids of a tokenizer become inputs: 0 is padding for all models, whatever it is for a tokenizer."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN = "[PAD]", "[UNK]"


def id_shift(tokenizer: "Tokenizer") -> Literal[0, 1]:
    """Return the offset of token ids: models use 0 for padding, which may be a word of a custom tokenizer."""
    return 0 if tokenizer.id_to_token(0) in (PAD, "<pad>") else 1
