"""Parts of the shared state that messages leave behind: last labels, cached labels, and fields sent once."""

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.kinds import Direction
from fedistill.communication.protocol.shared_state import SharedState, StatePart
from fedistill.communication.tensor_specs import Classes, Floats, TensorSpec
from fedistill.errors import FrameError
from fedistill.state import State

LAST_LABELS: dict[Direction, str] = {"down": "told", "up": "said"}
"""Names of the parts with the last label of each public sample, by the direction in which it was sent."""
SENT_ONCE: dict[Direction, str] = {"down": "once-down", "up": "once-up"}
"""Names of the parts with the fields that are sent once."""
_UNKNOWN = -1
_AS_HELD, _ANEW = b"\0", b"\1"


def last_labels(shared: SharedState, way: Direction, spec: TensorSpec) -> Classes | None:
    """Return the classes (n,) last sent for a tensor's rows, -1 where none was; None if there are none."""
    table = shared.value(LAST_LABELS[way])
    if not table or spec.rows is None:
        return None
    classes: Classes = table["classes"].numpy()[spec.rows].astype(np.int64)
    return classes


def with_labels(table: State, spec: TensorSpec, values: Floats) -> StatePart:
    """Return the part of last labels after values (n, C) for a tensor's rows."""
    assert spec.rows is not None
    classes = (
        table["classes"].clone() if table else torch.full((spec.population,), _UNKNOWN, dtype=torch.int16)
    )
    classes[torch.from_numpy(spec.rows)] = torch.from_numpy(values.argmax(axis=1).astype(np.int16))
    return StatePart({"classes": classes})


def held_turn(shared: SharedState) -> dict[str, int]:
    """Return the turn that the labels in the cache are of."""
    return {"held": shared.value("cache").get("turn", 0)}


def with_rows(cache: State, spec: TensorSpec, probs: Tensor, turn: int) -> StatePart:
    """Return the cache after labels (n, C) of a turn."""
    assert spec.rows is not None
    whole = cache["probs"].clone() if cache else torch.zeros(spec.population, spec.shape[1])
    whole[torch.from_numpy(spec.rows)] = probs
    return StatePart({"probs": whole, "turn": turn})


def held_payloads(shared: SharedState, way: Direction) -> dict[str, bytes]:
    """Return the payloads of the fields that are sent once, as they came last."""
    return {name: payload.numpy().tobytes() for name, payload in shared.value(SENT_ONCE[way]).items()}


def with_payloads(payloads: dict[str, bytes]) -> StatePart:
    """Return the part from which `held_payloads` reads these."""
    tensors = {
        name: torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for name, data in payloads.items()
    }
    return StatePart(tensors)


def write_once(payload: bytes, held: bytes | None) -> bytes:
    """Return the section of a field that is sent once."""
    return _AS_HELD if payload == held else _ANEW + payload


def read_once(section: bytes, held: bytes | None) -> bytes:
    """Return the payload of a field that is sent once: the value in the section, or the one already held.

    Raises:
        FrameError: the section contains neither, or nothing is held.
    """
    if section[:1] == _ANEW:
        return section[1:]
    if section != _AS_HELD:
        raise FrameError("it neither contains a value nor states that the value is held")
    if held is None:
        raise FrameError("it states that its value is held, but none is")
    return held
