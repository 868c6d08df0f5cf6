"""What a model of a task takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Signature:
    """What a model of a task takes and gives.

    Attributes:
        kind: image models take float32 (n, channels, height, width) in [-1, 1], text models take
            int64 token ids (n, length), 0 being padding.
        shape: of one input: (channels, height, width) or (length,).
        classes: C; a model gives float32 logits (n, C).
        vocabulary: number of token ids; 0 for images.
    """

    kind: Literal["image", "text"]
    shape: tuple[int, ...]
    classes: int
    vocabulary: int


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants done to raw samples before it sees them; None is what the task does.

    Images are handed over as they are. A model function of your own declares it as its attribute::

        def net(signature): ...

        net.preprocessing = Preprocessing(tokenizer="tokenizer.json", length=64)

    Attributes:
        tokenizer: path of a tokenizer.json beside the function's module, for texts.
        length: tokens kept of each text.
    """

    tokenizer: str | None = None
    length: int | None = None


Build = Callable[[Signature], nn.Module]
