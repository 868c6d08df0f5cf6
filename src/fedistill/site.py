"""A client's site: a frame and the client's state in, work, a frame and the new state out.

This is all that happens at a client, whatever carries the frames; only bytes enter and leave.
"""

import time
import traceback
from dataclasses import dataclass

import torch

from fedistill.arm import ReadyArm
from fedistill.errors import FedistillError, TrainingError
from fedistill.evaluate import correct_by_class
from fedistill.rng import scoped
from fedistill.state import State, dump, load
from fedistill.wire.message import Message, pack, unpack


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client's work ends in: its state, its reply (empty: none) and the seconds it took."""

    state: bytes
    frame: bytes
    seconds: float


def work(arm: ReadyArm, client: int, round: int, state: bytes, frame: bytes) -> Outcome:
    """Do a client's part of a round.

    Args:
        state: as the last `Outcome` left it; empty before the client's first round.
        frame: what the server sent; empty where it sent nothing.

    Raises:
        TrainingError: anything that goes wrong in the work, with the round and the client.
    """
    started = time.perf_counter()
    try:
        own = arm.client(client, round)
        before = load(state) if state else arm.method.start_client(own)
        received: Message | None = None
        if frame:
            assert arm.method.downlink is not None
            received = unpack(arm.method.downlink, frame, arm.codec, arm.sizes(client), round, client)
        # Dropout layers know only torch's global generator.
        with scoped(arm.seed, "layers", client, round):
            after, message = arm.method.client_step(before, own, received)
        check_finite(after)
        reply = b"" if message is None else pack(message, arm.codec, round, client)
        return Outcome(dump(after) if after else b"", reply, time.perf_counter() - started)
    except FedistillError as error:
        raise TrainingError(str(error), f"round {round}, client {client}") from error
    except Exception as error:  # a user's own model may raise anything; the round and client are named
        raise TrainingError(describe(error), f"round {round}, client {client}") from error


def correct(arm: ReadyArm, client: int, state: bytes) -> list[int]:
    """Count the global test samples of each class that a client's own model gets right.

    Raises:
        TrainingError: the model raises anything; with the client.
    """
    try:
        own = arm.client(client, round=0)
        kept = load(state) if state else arm.method.start_client(own)
        model = own.load(kept["model"])
        classes = arm.task.signature.classes
        return correct_by_class(model, arm.task.test, classes, arm.evaluate.batch_size).tolist()
    except Exception as error:  # as in `work`
        raise TrainingError(describe(error), f"evaluation, client {client}") from error


def describe(error: Exception) -> str:
    """An unexpected error with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def check_finite(state: State) -> None:
    """Raise `TrainingError` where a state's model has weights that are NaN or infinite."""
    weights = state.get("model")
    if weights is not None and not torch.isfinite(weights).all():
        raise TrainingError("the model's weights are not finite after training: lower train.optimizer.lr")
