"""What tuning varies of an arm, and which settings it tries next.

A setting is named by its place in the arm: ``distill_epochs``, ``train.optimizer.lr``, ``codec.levels``, or
``codec.up.bits`` if the codecs of both directions differ.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from fedistill.communication.messages.labels import Votes
from fedistill.communication.messages.tally import TallyReply
from fedistill.config.inputs import InputKind
from fedistill.config.messages import explain_errors
from fedistill.config.schema import Arm
from fedistill.config.section import Raw, RawTable
from fedistill.errors import ExperimentError
from fedistill.federation.arm import resolve_arm, settle_arm
from fedistill.methods.registry import create_method
from fedistill.rng import numpy_stream

Values = tuple[Raw, ...]
Settings = dict[str, Raw]
"""Values by place, where they differ from the arm's own."""
Space = dict[str, Values]
"""The values that each setting may take, by its place, the arm's own first."""


@dataclass(frozen=True)
class Times:
    """Multiples of an arm's own value, to two significant digits."""

    factors: tuple[float, ...]


Candidates = Values | Times

TRAIN: Mapping[str, Candidates] = {
    "train.epochs": (1, 2, 3, 5, 8, 20),
    "train.steps": Times((0.5, 2, 4)),
    "train.optimizer.lr": Times((1 / 3, 3)),
    "train.loss": ("cross-entropy", "balanced-softmax"),
    "train.label_smoothing": (0.0, 0.1),
}
CODECS: Mapping[str, Mapping[str, Candidates]] = {
    "dadaquant": {"last": (4, 16, 64)},
    "low-rank": {"energy": (0.8, 0.9, 0.95, 0.99)},
    "qsgd": {"levels": (1, 3, 7)},
    "simplex": {"bits": (1, 2, 4)},
    "stc": {"share": (0.01, 0.02, 0.05, 0.1)},
    "top-classes": {"k": (1, 2, 3), "bits": (2, 4)},
    "top-k": {"share": (0.01, 0.02, 0.05, 0.1)},
}
"""Settings of codecs that trade bytes for accuracy."""
METHODS: Mapping[str, Candidates] = {
    "afresh": (True, False),
    "alpha": (0.3, 0.5, 0.7),
    "beta": (0.3, 0.5, 0.7),
    "buckets": (4096, 8192, 16384),
    "confidence": (0.5, 0.7, 0.9),
    "coverage": (0.7, 0.8, 0.9, 1.0),
    "digest_epochs": (1, 3, 5, 10),
    "distill_epochs": (1, 3, 5, 10, 30),
    "diversity": Times((0.3, 3)),
    "down_step": (1.0, 2.0, 3.0),
    "duration": (5, 20, 50),
    "epochs": (1, 3, 5, 10),
    "gamma": (0.03, 0.1, 0.3, 1.0),
    "l2": Times((0.1, 10)),
    "least": (1, 2, 4, 8),
    "levels": (2, 3, 5, 15),
    "levels_first": (True, False),
    "lr_factor": (2.0, 5.0, 10.0),
    "merge_every": (1, 2, 4, 8),
    "mu": (0.001, 0.01, 0.1, 1.0),
    "optimizer.lr": Times((1 / 3, 3)),
    "penalty": Times((0.1, 10)),
    "quantile": (0.1, 0.25, 0.5),
    "retain": (0.0, 0.3, 1.0, 3.0),
    "server_epochs": Times((0.3, 3)),
    "server_lr": Times((1 / 3, 3)),
    "sharpness": (0.0, 0.3, 1.0, 3.0),
    "steps": Times((0.3, 3)),
    "temperature": (1.0, 3.0, 5.0),
    "trained_share": (0.02, 0.05, 0.1, 0.2),
    "up_step": (1.0, 2.0, 3.0),
    "vote_epochs": (5, 10, 20, 40),
    "weight": Times((0.3, 3)),
    "width": (32, 64, 96, 128),
}
"""Settings of methods, whichever method has them; besides, the aggregation of those that have one."""
AGGREGATIONS: Mapping[bool, tuple[str, ...]] = {
    False: ("mean", "era", "prior-corrected"),
    True: ("majority", "prior-corrected", "dawid-skene"),
}
"""Of soft labels, and of votes (true), whose mean, sharpened or not, selects the class of the majority."""


def search_space(arm: Arm, data: InputKind, vary: Mapping[str, Values | None]) -> Space:
    """Return what to vary of an arm.

    Args:
        data: what the task holds; defaults of training depend on it.
        vary: settings by place, with their values or None for the usual ones; if empty, all that have usual
            values. Those that the arm does not have are left out.

    Raises:
        ExperimentError: a value in ``vary`` is not valid for the arm.
    """
    full = _written_out(arm, data)
    method = create_method(arm)
    trains = method.has_server_model or not method.one_shot
    usual = dict(_usual(full, trains, votes=method.uplink in (Votes, TallyReply)))
    space: Space = {}
    for key in vary or usual:
        if not _has(full, key):
            continue
        own = _value(full, key)
        given = vary.get(key)
        others: list[Raw] = []
        for value in _candidates(own, usual.get(key, ())) if given is None else given:
            try:
                found = _value(_written_out(changed(arm, {key: value}, data), data), key)
            except ExperimentError:
                if given is not None:
                    raise
                continue  # a usual value may be out of a setting's range
            if found != own and value not in others:
                others.append(value)
        if others:
            space[key] = (own, *others)
    return space


def changed(arm: Arm, settings: Settings, data: InputKind) -> Arm:
    """Return an arm with some of its settings changed.

    Raises:
        ExperimentError: the arm cannot have these values.
    """
    full = _written_out(arm, data)
    table: RawTable = arm.model_dump(exclude_unset=True, exclude_none=True)
    for first in {key.partition(".")[0] for key in settings if "." in key} - {"train"}:
        table[first] = copy.deepcopy(full[first])  # it may have been a name, or left open
    for key, value in settings.items():
        *parents, last = key.split(".")
        place = table
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = copy.deepcopy(value)
    try:
        found = Arm.model_validate(table)
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, f"arm {arm.name!r}", Arm)) from None
    resolve_arm(found)
    return found


def size(space: Space) -> int:
    """Return how many different settings a space has."""
    return math.prod(len(values) for values in space.values())


def propose(
    space: Space, tried: Sequence[Settings], best: Settings | None, seed: int, arm: str
) -> Settings | None:
    """Return the settings to try next, or None if all have been tried.

    The first are the arm's own. From then on, every second proposal is drawn from the whole space and the
    others change one setting of the best ones so far. A proposal depends on nothing but the arguments.
    """
    if not tried:
        return {}
    if len(tried) >= size(space):
        return None
    generator = numpy_stream(seed, f"tune {arm}", round=len(tried))
    if len(tried) % 2 == 0 and best is not None:
        near = [settings for settings in _neighbours(space, best) if settings not in tried]
        if near:
            return near[int(generator.integers(len(near)))]
    while True:
        drawn = {key: int(generator.integers(len(values))) for key, values in space.items()}
        settings = {key: space[key][place] for key, place in drawn.items() if place}
        if settings not in tried:
            return settings


def _neighbours(space: Space, settings: Settings) -> Iterator[Settings]:
    """Yield settings that differ in one place."""
    for key, (own, *others) in space.items():
        rest = {name: value for name, value in settings.items() if name != key}
        if key in settings:
            yield rest
        for value in others:
            if value != settings.get(key, own):
                # In the order of the space, as drawn settings are.
                yield {name: {**rest, key: value}[name] for name in space if name in rest or name == key}


def _written_out(arm: Arm, data: InputKind) -> RawTable:
    """Return all settings of an arm as tables, with what it leaves open."""
    settled = settle_arm(arm, data)
    return {**create_method(settled).settings.model_dump(), **settled.model_dump()}


def _usual(full: RawTable, trains: bool, votes: bool) -> Iterator[tuple[str, Candidates]]:
    """Yield the settings that are varied unless something else is asked for, with their values."""
    if trains:
        unused = "train.epochs" if full["train"]["steps"] else "train.steps"
        yield from ((key, candidates) for key, candidates in TRAIN.items() if key != unused)
    for place, codec in _codecs(full["codec"]):
        name = codec["name"] if isinstance(codec, dict) else codec
        for setting, candidates in CODECS.get(name, {}).items():
            yield f"{place}.{setting}", candidates
    for key, candidates in METHODS.items():
        if _has(full, key) and _value(full, key) is not None:
            yield key, candidates
    if isinstance(full.get("aggregation"), dict):
        yield (
            "aggregation",
            tuple(name for name in AGGREGATIONS[votes] if name != full["aggregation"]["name"]),
        )


def _codecs(codec: str | RawTable) -> list[tuple[str, str | RawTable]]:
    """Return the codec of both directions, or that of each, with its place in the arm."""
    if isinstance(codec, dict) and "name" not in codec:
        return [(f"codec.{way}", codec[way]) for way in ("up", "down")]
    return [("codec", codec)]


def _candidates(own: Raw, candidates: Candidates) -> Values:
    if not isinstance(candidates, Times):
        return candidates
    if not isinstance(own, int | float):
        return ()
    values = (float(f"{own * factor:.2g}") for factor in candidates.factors)
    return tuple(max(1, round(value)) if isinstance(own, int) else value for value in values)


def _has(full: RawTable, key: str) -> bool:
    place: Raw = full
    for part in key.split("."):
        if not isinstance(place, dict) or part not in place:
            return False
        place = place[part]
    return True


def _value(full: RawTable, key: str) -> Raw:
    place: Raw = full
    for part in key.split("."):
        place = place[part]
    return place
