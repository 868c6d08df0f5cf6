"""What a client is sent before round 1: a vocabulary, and a saved model that the run starts from."""

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

    Clients that hold the public set build the vocabulary from it; others are sent it. A tokenizer of the
    user's own is sent to all. One that a model declares comes with the model's code, and hashed words need
    none.
    """
    alone = method.uplink is None and method.downlink is None
    builds = "clients" in method.needs.public and task.vocabulary_from_public
    wanted = [models.preprocessing(method.inputs_of(name)) for name in names]
    brings = all(one.tokenizer is not None or one.buckets is not None for one in wanted)
    return b"" if alone or builds or brings else task.vocabulary_frame


def start_frame(start: ModelState) -> bytes:
    """Return the frame with a saved model, as float32 and int64."""
    sections = start.weights.numpy().tobytes(), start.integers.numpy().tobytes()
    return encode(Frame(Kind.WEIGHTS, SETUP_ROUND, EVERYONE, sections))
