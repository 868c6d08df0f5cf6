"""What a client measures: its own model, or the server's on its own samples. Numbers alone leave it."""

import numpy as np
import torch
from torch import nn

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.frame import Frame
from fedistill.errors import FrameError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.federation.failures import failing_at
from fedistill.federation.metrics import ACCURACY
from fedistill.federation.scores import Answers, Asked, Matrix, Scores, Values
from fedistill.training.model_state import ModelState, flatten_integers, floats

_WEIGHT, _INTEGER = np.dtype("<f4"), np.dtype("<i8")


def evaluate_client(arm: ReadyArm, client: int, state: bytes, frame: bytes = b"") -> Scores:
    """Return the scores of a client's own model, or of the server's on what the client has held out.

    Args:
        state: as the last `ClientResult` left it; empty before the client's first round.
        frame: the server's model, from `model_frame`; empty for the client's own.

    Raises:
        TrainingError: the frame is not that of a model, the model raises anything, or its logits are not
            finite; with the client.
    """
    with failing_at(f"evaluation, client {client}"):
        if frame:
            found = arm.model_for_sites()
            if found is None:
                raise FrameError("a model of the server came, which this method cannot evaluate at a client")
            name, module = found
            own, confusion = _own(arm, client, name, read_model(frame, module))
            return Scores(own=own, confusion=confusion)
        worker = arm.client(client, round=0)
        module = worker.load(client_state(arm, client, state).model)
        everywhere = arm.answers(worker.model, module)
        if arm.holds_out:
            own, confusion = _own(arm, client, worker.model, module)
        else:
            own, confusion = _weighted(arm, client, everywhere), {}
        if arm.asks_for_confusion:
            confusion["everywhere"] = everywhere.confusion()
        correct = everywhere.correct_by_class().tolist()
        return Scores(correct, everywhere.values(arm.metrics), own, confusion)


def asked_of_clients(arm: ReadyArm, frame: bytes = b"") -> Asked:
    """Return what `evaluate_client` answers with, as far as the server can know."""
    classes = len(arm.task.classes)
    tested = [] if frame else torch.bincount(arm.task.test.labels, minlength=classes).tolist()
    return Asked(tested, classes, arm.metrics, arm.asks_for_confusion)


def _own(arm: ReadyArm, client: int, name: str, module: nn.Module) -> tuple[Values, dict[str, Matrix]]:
    """Return a model's scores on what a client has held out; all None if that is nothing."""
    if not len(arm.task.own_tests[client]):
        return {ACCURACY: None, **{metric.name: None for metric in arm.metrics}}, {}
    answers = arm.answers(name, module, client)
    values: Values = {ACCURACY: answers.accuracy(), **answers.values(arm.metrics)}
    return values, {"own": answers.confusion()} if arm.asks_for_confusion else {}


def _weighted(arm: ReadyArm, client: int, answers: Answers) -> Values:
    """Return a model's scores on the global test set with its classes as in the client's private data."""
    classes = len(arm.task.classes)
    private, tested = (
        torch.bincount(labels, minlength=classes).double()
        for labels in (arm.task.clients[client].labels, arm.task.test.labels)
    )
    return answers.values(arm.metrics, (private / tested.clamp(min=1))[answers.labels])


def model_frame(state: ModelState, round: int) -> bytes:
    """Return the frame that brings the server's model to clients: its weights (P,) and its integers (I,)."""
    sections = (
        state.weights.numpy().astype(_WEIGHT).tobytes(),
        state.integers.numpy().astype(_INTEGER).tobytes(),
    )
    return frames.encode(Frame(Kind.EVALUATED_MODEL, round, frames.EVERYONE, sections))


def read_model(data: bytes, module: nn.Module) -> nn.Module:
    """Return the module with the model that `model_frame` wrote.

    Raises:
        FrameError: the frame is damaged or of another kind, has more or fewer numbers than the module, or
            weights that are not finite.
    """
    frame = frames.decode(data)
    held = [4 * sum(value.numel() for value in floats(module)), 8 * len(flatten_integers(module))]
    sizes = list(map(len, frame.sections))
    if frame.kind != Kind.EVALUATED_MODEL or sizes not in (held, [held[0], 0]):
        raise FrameError(f"a frame with parts of {sizes} bytes came in place of a model with {held}")
    weights = np.frombuffer(frame.sections[0], _WEIGHT)
    integers = np.frombuffer(frame.sections[1], _INTEGER)
    if not np.isfinite(weights).all():
        raise FrameError("the server's model has weights that are not finite")
    state = ModelState(torch.tensor(weights.astype(np.float32)), torch.tensor(integers.astype(np.int64)))
    return state.load_into(module)
