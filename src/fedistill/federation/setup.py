"""What crosses before round 1: sums of columns, a vocabulary or an encoding, and a saved model."""

from collections.abc import Iterable

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import EVERYONE, Frame, encode
from fedistill.data.task import Task
from fedistill.federation.ledger import SETUP_ROUND
from fedistill.methods.registry import AnyMethod
from fedistill.models import registry as models
from fedistill.training.model_state import ModelState


def vocabulary_frame(method: AnyMethod, task: Task, names: Iterable[str]) -> bytes:
    """Return the frame with the vocabulary for a client that uses models of these names, or nothing.

    Clients that hold the public set build the vocabulary from it; others are sent it. The same holds for the
    encoding of a table's rows, which is sent to all if it is from sums that clients share. A tokenizer of the
    user's own is sent to all. One that a model declares comes with the model's code, and hashed words need
    none.
    """
    builds = "clients" in method.needs.public and task.vocabulary_from_public
    wanted = [models.preprocessing(method.inputs_of(name)) for name in names]
    brings = all(one.tokenizer is not None or one.buckets is not None for one in wanted)
    return b"" if is_alone(method) or builds or brings else task.vocabulary_frame


def is_alone(method: AnyMethod) -> bool:
    """Whether nothing crosses in any round, as of a control."""
    return method.uplink is None and method.downlink is None


def start_frame(start: ModelState) -> bytes:
    """Return the frame with a saved model, as float32 and int64."""
    sections = start.weights.numpy().tobytes(), start.integers.numpy().tobytes()
    return encode(Frame(Kind.WEIGHTS, SETUP_ROUND, EVERYONE, sections))
