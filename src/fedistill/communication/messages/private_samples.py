"""Messages with a row for each private sample of a client, in the client's order."""

from dataclasses import dataclass

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Symbols
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import FrameError


@dataclass(frozen=True)
class PrivateOutputs(Message):
    """A client's features (n, d) and logits (n, C) of its private samples, and possibly their classes (n,).

    ``labelled`` is 1 if ``labels`` has the classes, and 0 if it is empty because the receiver has them.
    """

    kind = Kind.PRIVATE_OUTPUTS
    varies = True
    features: Tensor
    scores: Tensor
    labels: Tensor
    labelled: int

    @classmethod
    def integer_arrays(cls, context: MessageContext, numbers: Numbers) -> dict[str, IntegerArray]:
        labelled = numbers["labelled"]
        if labelled > 1:
            raise FrameError(f"`labelled` is {labelled}; it must be 0 or 1")
        return {"labels": Symbols(labelled * context.private, context.classes)}

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        features = TensorSpec(Content.SCORES, (context.private, context.width))
        return {"features": features, **PrivateLogits.specs(context, numbers)}


@dataclass(frozen=True)
class PrivateLogits(Message):
    """Logits (n, C) of a client's private samples."""

    kind = Kind.PRIVATE_LOGITS
    scores: Tensor

    @classmethod
    def specs(cls, context: MessageContext, numbers: Numbers) -> dict[str, TensorSpec]:
        return {"scores": TensorSpec(Content.SCORES, (context.private, context.classes))}
