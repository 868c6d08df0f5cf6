"""Several runs as one: their arms side by side, in the shape of ``results.json``."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from fedistill.experiment.results import (
    SCHEMA_OF_SEEDS,
    AnyArmJson,
    AnyResultsJson,
    ArmOfSeedsJson,
    ResultsOfSeedsJson,
    TaskJson,
    of_seeds,
)
from fedistill.experiment.summary import seed_json

_Value = TypeVar("_Value")
_MOST_LISTED = 3


def side_by_side(runs: Mapping[str, AnyResultsJson]) -> ResultsOfSeedsJson:
    """Return the arms of all runs, each named ``RUN: ARM``, as the results of one run with seeds.

    Seeds are those of any run; an arm that lacks some of them has its status and figures of its own. Where
    tasks differ, `task` says in its ``title`` how, and has no samples by client; where their clients do, the
    work of one client cannot be told and is left out.

    Args:
        runs: the results of at least one run, by name.
    """
    first, *_ = runs.values()
    tasks = [results["task"] for results in runs.values()]
    alike = all(task["clients"] == tasks[0]["clients"] for task in tasks)
    arms = [_arm(name, arm, alike) for name, results in runs.items() for arm in results["arms"]]
    task = _task(tasks)
    return {
        "schema": SCHEMA_OF_SEEDS,
        "version": first["version"],
        "versions": first["versions"],
        "hardware": first["hardware"],
        "command": "; ".join(_distinct([results["command"] for results in runs.values()])),
        "task": task,
        "tasks": [{"seed": arms[0]["seeds"][0]["seed"], **task}] if arms and arms[0]["seeds"] else [],
        "seeds": _distinct([seed for results in runs.values() for seed in _seeds(results)]),
        "arms": arms,
    }


def named(run: str, arm: str) -> str:
    """Return what an arm of a run is called beside those of others."""
    return f"{run}: {arm}"


def _seeds(results: AnyResultsJson) -> list[int]:
    if "seeds" in results:
        return results["seeds"]
    return [one["seed"] for arm in results["arms"] for one in of_seeds(arm)]


def _arm(run: str, arm: AnyArmJson, counts_work: bool) -> ArmOfSeedsJson:
    seeds = [seed_json(one) for one in of_seeds(arm)]
    if not counts_work:
        for one in seeds:
            one.pop("multiply_adds", None)
            one.pop("memory", None)
    return {
        "name": named(run, arm["name"]),
        "method": arm["method"],
        "codec": arm["codec"],
        "server_model": arm["server_model"],
        "client_models": arm["client_models"],
        "parameters": arm["parameters"],
        "seeds": seeds,
    }


def _task(tasks: Sequence[TaskJson]) -> TaskJson:
    first = tasks[0]
    if all(task == first for task in tasks):
        return first
    names = _listed([task["name"] for task in tasks], "tasks")
    clients = _listed([str(task["clients"]) for task in tasks], "numbers of")
    partitions = _listed([task["partition"] for task in tasks], "partitions")
    return {
        **first,
        "name": names,
        "partition": partitions,
        "title": f"{names}, {clients} clients, {partitions}",
        "samples": [],
        "class_counts": [],
    }


def _listed(values: Sequence[str], what: str) -> str:
    """Return few different values as they are, and of many their number."""
    found = _distinct(values)
    return " | ".join(found) if len(found) <= _MOST_LISTED else f"{len(found)} {what}"


def _distinct(values: Sequence[_Value]) -> list[_Value]:
    return list(dict.fromkeys(values))
