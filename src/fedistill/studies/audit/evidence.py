"""What a client's message says, whatever method sent it: the parts that an attack can use."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.communication.messages.base import Message
from fedistill.communication.messages.bridge import BridgeReply
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes, WeightsAndOutputs
from fedistill.communication.messages.labels import ChosenLabels, Logits, SoftLabels, Votes
from fedistill.communication.messages.scored import ScoredLabels
from fedistill.communication.messages.statistics import FeatureMoments, WordCounts
from fedistill.federation.arm import ReadyArm
from fedistill.methods.participants import sample_public
from fedistill.methods.shared.expertise import sizes
from fedistill.methods.shared.moments import Moments
from fedistill.training.model_state import ModelState

_CERTAIN = 0.999


@dataclass(frozen=True)
class Model:
    """A model that was trained on the client's private data; ``name`` is that of its architecture."""

    name: str
    state: ModelState


@dataclass(frozen=True)
class Labels:
    """Probabilities (n, C) of the public samples (n,)."""

    places: Tensor
    probs: Tensor

    @property
    def votes(self) -> bool:
        """Whether they are one class each."""
        return len(self.probs) > 0 and bool((self.probs.amax(dim=1) > _CERTAIN).all())


@dataclass(frozen=True)
class ClassMeans:
    """Mean outputs, or mean features, (C, d) of each class, and a mask (C,) of the classes that have any."""

    means: Tensor
    present: Tensor


class Outputs(ClassMeans):
    """Mean softmax outputs (C, C)."""


class Features(ClassMeans):
    """Mean features (C, d) of a model that the server does not have."""


@dataclass(frozen=True)
class Statistics:
    """Counts, means and covariance of features that the server computes as the client does."""

    moments: Moments


@dataclass(frozen=True)
class Words:
    """Counts of texts (C,) and words (C, V) by class."""

    texts: Tensor
    words: Tensor


@dataclass(frozen=True)
class Counts:
    """About how many samples of each class (C,) the client has."""

    samples: Tensor


Evidence = Model | Labels | Outputs | Features | Statistics | Words | Counts


def evidence(arm: ReadyArm, client: int, round: int, message: Message) -> list[Evidence]:
    """Return what a client's message says; nothing if no attack here can use it."""
    classes = arm.task.signature.classes
    found: list[Evidence] = []
    match message:
        case Logits():
            found.append(Labels(_drawn(arm, round), message.scores.softmax(dim=1)))
        case ChosenLabels() if len(message.places):
            found.append(Labels(_drawn(arm, round)[message.places], message.probs))
        case SoftLabels() | ScoredLabels() | Votes():
            found.append(Labels(_drawn(arm, round), message.probs))
        case Prototypes():
            found.append(Features(*message.table(classes)))
        case FeatureMoments():
            found.append(Statistics(Moments.of(message, classes)))
        case WordCounts():
            found.append(Words(message.texts, message.words.reshape(classes, -1)))
        case ClassOutputs() | WeightsAndOutputs():
            found.append(Outputs(message.means, message.means.sum(dim=1) > 0))
        case BridgeReply():
            if len(message.levels):
                found.append(Counts(sizes(message.levels)))
            if (voted := (message.votes < classes).nonzero().flatten()).numel():
                found.append(Labels(voted, one_hot(message.votes[voted], classes).float()))
        case _:
            pass
    tensors = message.tensors()
    if {"values", "integers"} <= tensors.keys():
        own, served = arm.federation.clients[client].model, arm.config.models.server
        name = served if arm.method.travels == "server" else own
        if len(tensors["values"]) == arm.federation.layouts[name].size:
            found.append(Model(name, ModelState(tensors["values"], tensors["integers"])))
    return found


def is_rare(message: Message | None) -> bool:
    """Whether a message has what is sent once or twice in a run, in rounds that its kind does not tell."""
    return isinstance(message, BridgeReply) and len(message.levels) + len(message.votes) > 0


def _drawn(arm: ReadyArm, round: int) -> Tensor:
    """Return the indices (n,) of a round's public samples."""
    public = arm.federation.public
    return sample_public(arm.seed, public, arm.method.samples(public), round)
