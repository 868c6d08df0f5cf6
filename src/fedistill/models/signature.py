"""Inputs, outputs and preprocessing of a task's models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedistill.config.inputs import InputKind

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a task's models.

    Attributes:
        kind: image models take float32 (n, channels, height, width) in [-1, 1], text models take
            int64 token ids (n, length), where 0 is padding, models of tables take float32 (n, d), rows of
            scaled numbers and of categories as 0 and 1.
        shape: shape of one input, (channels, height, width), (length,) or (d,).
        classes: C; a model returns float32 logits (n, C).
        vocabulary: number of token ids; 0 for images and tables.
    """

    kind: InputKind
    shape: tuple[int, ...]
    classes: int
    vocabulary: int


@dataclass(frozen=True)
class Preprocessing:
    """How raw samples are prepared for a model; None stands for the task's default.

    Images and rows of tables are passed on unchanged. A custom model function declares it as an attribute::

        def net(signature): ...

        net.preprocessing = Preprocessing(tokenizer="tokenizer.json", length=64)

    Attributes:
        tokenizer: path of a tokenizer.json, relative to the folder of the function's module, for texts.
        length: number of tokens kept per text.
        buckets: in place of a tokenizer, words are hashed to ids from 1 to this number, which they may share.
    """

    tokenizer: str | None = None
    length: int | None = None
    buckets: int | None = None


Build = Callable[[Signature], "nn.Module"]
