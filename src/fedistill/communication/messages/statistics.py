"""Messages with statistics of a client's private data, which it sends when it is asked for them."""

from dataclasses import dataclass

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.count_matrix import CountMatrix
from fedistill.communication.messages.integer_arrays import IntegerArray, Symbols
from fedistill.communication.tensor_specs import TensorSpec
from fedistill.errors import FrameError

_MOST_SKIPPED = 1 << 30


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
        return {"skipped": 0}
