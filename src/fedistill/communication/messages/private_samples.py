"""Messages of private samples: what a side says of each sample of one client, in the client's order."""

from dataclasses import dataclass

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, MessageContext, Numbers
from fedistill.communication.messages.integer_arrays import IntegerArray, Symbols
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import FrameError


@dataclass(frozen=True)
class PrivateOutputs(Message):
    """A client's features (n, d) and logits (n, C) of its private samples, and perhaps their classes (n,).

    ``labelled`` is 1 where ``labels`` has the classes, and 0 where it is empty, since the receiver has them.
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
            raise FrameError(f"private samples are labelled or not, 1 or 0, but {labelled} came")
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
