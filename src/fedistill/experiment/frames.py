"""What ``results.json`` says, as pandas tables."""

import math

import pandas as pd

from fedistill.config.section import Raw
from fedistill.errors import nearest
from fedistill.experiment.reach import reached
from fedistill.experiment.results import AnyResultsJson, counted, last_views, of_seeds
from fedistill.federation.evaluation import VIEWS

_COUNTED_LATER = ("multiply_adds", "memory")
"""What rounds of early versions do not have."""


def rounds_frame(results: AnyResultsJson) -> pd.DataFrame:
    """Return one row per arm, seed and round; `fedistill.experiment.api.Run.rounds` names the columns."""
    rows: list[dict[str, Raw]] = []
    for arm in results["arms"]:
        for one in of_seeds(arm):
            total = one["bytes_setup"]
            for entry in one["rounds"]:
                total += entry["bytes_up"] + entry["bytes_down"]
                rows.append(
                    {
                        "arm": arm["name"],
                        "seed": one["seed"],
                        "round": entry["round"],
                        "bytes_up": entry["bytes_up"],
                        "bytes_down": entry["bytes_down"],
                        "bytes_total": total,
                        **entry["views"],
                        "seconds": entry["seconds"],
                        "clients": len(entry["clients"]),
                        "dropped": len(entry["dropped"]),
                        **{name: entry.get(name, math.nan) for name in _COUNTED_LATER},
                    }
                )
    before = ("arm", "seed", "round", "bytes_up", "bytes_down", "bytes_total")
    return pd.DataFrame(
        rows, columns=[*before, *views(results), "seconds", "clients", "dropped", *_COUNTED_LATER]
    )


def arms_frame(results: AnyResultsJson) -> pd.DataFrame:
    """Return one row per arm and seed; `fedistill.experiment.api.Run.frame` names the columns."""
    rows: list[dict[str, Raw]] = []
    for arm in results["arms"]:
        for one in of_seeds(arm):
            rows.append(
                {
                    "arm": arm["name"],
                    "seed": one["seed"],
                    "method": arm["method"],
                    "codec": arm["codec"],
                    "status": one["status"],
                    "rounds": len(one["rounds"]),
                    **last_views(one),
                    "bytes_up": sum(entry["bytes_up"] for entry in one["rounds"]),
                    "bytes_down": sum(entry["bytes_down"] for entry in one["rounds"]),
                    "bytes_setup": one["bytes_setup"],
                    "bytes_public": one["bytes_public"],
                    "bytes_total": one["bytes_total"],
                    "bytes_transport": one["bytes_transport"],
                    **{name: one.get(name, math.nan) for name in _COUNTED_LATER},
                }
            )
    before = ("arm", "seed", "method", "codec", "status", "rounds")
    sums = [f"bytes_{what}" for what in ("up", "down", "setup", "public", "total", "transport")]
    return pd.DataFrame(rows, columns=[*before, *views(results), *sums, *_COUNTED_LATER])


def reach_frame(results: AnyResultsJson, accuracy: float, view: str) -> pd.DataFrame:
    """Return the bytes to an accuracy; `fedistill.experiment.api.Run.bytes_to` names the columns.

    Raises:
        ValueError: the accuracy is not a share, or no arm can have the view.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy = {accuracy!r} must be from 0 to 1: write 0.8 for 80 %")
    check_view(results, view)
    rows: list[dict[str, Raw]] = []
    for arm in results["arms"]:
        seeds = counted(arm)
        if any(view in entry["views"] for one in seeds for entry in one["rounds"]):
            for one in seeds:
                found = reached(one, view, accuracy)
                sent, number = (math.inf, math.inf) if found is None else map(float, found)
                names = {"arm": arm["name"], "seed": one["seed"]}
                rows.append({**names, "bytes": sent, "round": number, "bytes_public": one["bytes_public"]})
    return pd.DataFrame(rows, columns=["arm", "seed", "bytes", "round", "bytes_public"])


def views(results: AnyResultsJson) -> list[str]:
    """Return the views that any arm has, those that all versions know first."""
    found = [
        view
        for arm in results["arms"]
        for one in of_seeds(arm)
        for entry in one["rounds"]
        for view in entry["views"]
    ]
    return [view for view in dict.fromkeys([*VIEWS, *found]) if view in found]


def check_view(results: AnyResultsJson, view: str) -> None:
    """Raise `ValueError` if a view is neither one of the results nor one that an arm might have had."""
    known = list(dict.fromkeys([*views(results), *VIEWS]))
    if view not in known:
        raise ValueError(f"view = {view!r} must be one of {', '.join(known)}.{nearest(view, known)}")
