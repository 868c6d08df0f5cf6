"""Messages with statistics of a client's private data, which it sends when it is asked for them."""

from dataclasses import dataclass

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.count_matrix import CountMatrix
from fedistill.communication.messages.integer_arrays import Fitted, IntegerArray, Subset, Symbols
from fedistill.communication.tensor_specs import TensorSpec
from fedistill.errors import FrameError

_MOST_SKIPPED = 1 << 30
MOST_LEVELS = 255
SCALES_PER_OCTAVE = 8
MOST_SCALE = 127
"""Standard deviations are from 2**-15.9 to 2**15.9."""
MEAN_UNIT = 0.25
MOST_MEAN = 127
"""Class means are up to 31.75 standard deviations away from 0."""


@dataclass(frozen=True)
class StatisticsRequest(Message):
    """Asks a client for its statistics; it has no content."""

    kind = Kind.STATISTICS_REQUEST

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {}


@dataclass(frozen=True)
class WordCounts(Message):
    """How many texts of each class a client has (C,), and how often each word is in them, flat (C V,).

    Counts of words from 1 to ``skipped`` are left out, that is, 0.
    """

    kind = Kind.WORD_COUNTS
    texts: Tensor
    words: Tensor
    skipped: int

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        if numbers["skipped"] >= _MOST_SKIPPED:
            raise FrameError(f"`skipped` is {numbers['skipped']}; it must be below {_MOST_SKIPPED}")
        most = context.private * context.length
        words = CountMatrix(context.classes, context.width, most, numbers["skipped"] + 1)
        return {"texts": Symbols(context.classes, context.private + 1), "words": words}

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"skipped": context.settings.get("skipped", 0)}


@dataclass(frozen=True)
class FeatureMoments(Message):
    """Counts, class means and the covariance within classes of a client's features, as integers.

    Attributes:
        classes: the classes (m,) that the client has, in ascending order; ``present`` is m.
        samples: how many samples it has of each (m,).
        scales: of each feature (d,), the standard deviation within classes as 8 times its binary logarithm;
            the first value, then differences from one to the next.
        means: class means (m d,) in units of `MEAN_UNIT` standard deviations: those of the first class, and
            the differences of the others from these.
        correlations: the triangle above the diagonal (d (d - 1) / 2,), in units of 1 / ``levels``.
    """

    kind = Kind.FEATURE_MOMENTS
    varies = True
    classes: Tensor
    samples: Tensor
    scales: Tensor
    means: Tensor
    correlations: Tensor
    present: int
    levels: int

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        present, levels, width = numbers["present"], numbers["levels"], context.width
        if present > context.classes:
            raise FrameError(f"`present` is {present}; there are {context.classes} classes")
        if levels > MOST_LEVELS:
            raise FrameError(f"`levels` is {levels}; it must be {MOST_LEVELS} at most")
        return {
            "classes": Subset(present, context.classes),
            "samples": Symbols(present, context.private + 1),
            "scales": Fitted(width, 2 * MOST_SCALE),
            "means": Fitted(present * width, 2 * MOST_MEAN),
            "correlations": Fitted(width * (width - 1) // 2, max(levels, 1)),
        }

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {}

    @classmethod
    def longest(cls, context: MessageContext) -> Numbers:
        return {"present": context.classes, "levels": context.settings.get("levels", MOST_LEVELS)}

    def check(self) -> None:
        if self.levels < 1:
            raise FrameError("`levels` is 0; it must be at least 1")
