"""Messages of private samples: what a side says of each sample of one client, in the client's order."""

from dataclasses import dataclass

from torch import Tensor

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message, Numbers, Sizes
from fedistill.communication.messages.integer_arrays import Symbols, Whole
from fedistill.communication.tensor_specs import Content, Spec
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
    def wholes(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Whole]:
        labelled = numbers["labelled"]
        if labelled > 1:
            raise FrameError(f"private samples are labelled or not, 1 or 0, but {labelled} came")
        return {"labels": Symbols(labelled * sizes.private, sizes.classes)}

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        features = Spec(Content.SCORES, (sizes.private, sizes.width))
        return {"features": features, **PrivateLogits.specs(sizes, numbers)}


@dataclass(frozen=True)
class PrivateLogits(Message):
    """Logits (n, C) of a client's private samples."""

    kind = Kind.PRIVATE_LOGITS
    scores: Tensor

    @classmethod
    def specs(cls, sizes: Sizes, numbers: Numbers) -> dict[str, Spec]:
        return {"scores": Spec(Content.SCORES, (sizes.private, sizes.classes))}
