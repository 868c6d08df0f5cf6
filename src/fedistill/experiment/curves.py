"""Accuracy against bytes, rounds or time, as a plot has it: the mean and the range over seeds."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from fedistill.experiment.results import AnyArmJson, AnyResultsJson, SeedJson, counted

Axis = Literal["bytes", "round", "time"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True)
class Point:
    """An evaluated round of an arm: means over seeds, and the lowest and the highest accuracy of a seed."""

    round: int
    x: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """The evaluated rounds of an arm, in order.

    Attributes:
        sends: false if the arm exchanges nothing, and so has no place on an axis of bytes.
        seeds: how many seeds the means are over.
    """

    arm: str
    points: Sequence[Point]
    sends: bool
    seeds: int


def curves(results: AnyResultsJson, x: Axis, view: str, public: bool) -> list[Curve]:
    """Return the curve of each arm that has the view, in order.

    Rounds count that all seeds of the arm have evaluated. On an axis of bytes, those before an arm's first
    byte are left out, unless it never sends one.

    Args:
        x: ``bytes`` of all clients so far, up and down, set-up included; ``round``; or ``time``, the seconds
            of the rounds so far on the machine that ran them, without evaluation.
        view: whose accuracy (0 to 1) is the other axis.
        public: count one copy of the public set for each client that needs one among the bytes.
    """
    drawn = (_curve(arm, x, view, public) for arm in results["arms"])
    return [curve for curve in drawn if curve.points]


def axis_title(x: Axis, public: bool) -> str:
    """Return what the axis shows and what is counted."""
    return {
        "bytes": f"bytes, both ways, all clients; with set-up, {'with' if public else 'without'} public data",
        "round": "round",
        "time": "seconds on the machine of the run, without evaluation",
    }[x]


def heading(results: AnyResultsJson, several: bool) -> str:
    """Return the title of a plot, which says what a line and a band are where there are several seeds."""
    task = results["task"]
    seeds = "; mean and range over seeds" if several else ""
    return f"{task['name']}, {task['clients']} clients, {task['partition']}{seeds}"


def _curve(arm: AnyArmJson, x: Axis, view: str, public: bool) -> Curve:
    seeds = counted(arm)
    first, *others = (dict(_evaluated(one, x, view, public)) for one in seeds)
    points = []
    for number in first:
        if all(number in other for other in others):
            places, values = zip(*(found[number] for found in (first, *others)), strict=True)
            mean = statistics.mean(values)
            points.append(Point(number, statistics.mean(places), mean, min(values), max(values)))
    sends = any(_sent(one, public)[-1] for one in seeds)
    if x == "bytes" and sends:
        points = [point for point in points if point.x > 0]
    return Curve(arm["name"], points, sends, len(seeds))


def _evaluated(one: SeedJson, x: Axis, view: str, public: bool) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yield each round that has evaluated the view: its number, its place on the axis, and the accuracy."""
    sent = _sent(one, public)[1:]
    time = accumulate(entry["seconds"] for entry in one["rounds"])
    for entry, so_far, seconds in zip(one["rounds"], sent, time, strict=True):
        if view in entry["views"]:
            place = {"bytes": so_far, "round": entry["round"], "time": seconds}[x]
            yield entry["round"], (place, entry["views"][view])


def _sent(one: SeedJson, public: bool) -> list[int]:
    """Return the bytes before round 1 and after each round."""
    before = one["bytes_setup"] + (one["bytes_public"] if public else 0)
    each = (entry["bytes_up"] + entry["bytes_down"] for entry in one["rounds"])
    return list(accumulate(each, initial=before))
