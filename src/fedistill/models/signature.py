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


Build = Callable[[Signature], nn.Module]
