"""Every method through one table: a new method is one row, and is held to all that the others are.

The rules are those of `fedistill.testing`, to which anybody's method can be held; here each also learns.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import pytest

from fedistill.experiment.preflight import examine
from fedistill.federation.local_executor import ProcessExecutor
from fedistill.methods.registry import METHODS
from fedistill.testing.methods import METHOD_CHECKS, MethodCase
from fedistill.testing.runs import MIXED, MIXED_FOR_TEXTS, finish
from helpers.method_rows import FAMILIES, ROWS, Row, each, param

CHANCE = 0.1
LEARNING: dict[str, Any] = {
    "rounds": 6,
    "task": {"limit": 900, "public": 300},
    "train": {"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.05, "momentum": 0.9}},
    "evaluate": {"every": 6},
}


@lru_cache(maxsize=1)
def _case(name: str) -> MethodCase:
    (row,) = [one for one in ROWS if one.name == name]
    return MethodCase(row.method, row.models, row.settings)


def case_of(row: Row) -> MethodCase:
    """The case of a row, with the runs that it keeps, until that of another row is asked for."""
    return _case(row.name)


def test_every_method_is_in_the_table() -> None:
    assert {row.method for row in ROWS} == set(METHODS)


# What variants of a method may break, since they keep more.
OF_VARIANTS = ("resumed_ends_as_never_stopped",)
# What the library does with a method, rather than the method itself, or what resumed runs show as well.
OF_FAMILIES = (
    *("a_client_that_is_absent_comes_back", "adaptive_exchanges_outlast_lost_replies"),
    *("local_training_accumulates", "same_seed_same_bits", "worker_processes_end_in_the_same_bits"),
)


def chosen(row: Row, check: str) -> list[str]:
    """The row's name if the check is an everyday test of it."""
    if check in OF_FAMILIES:
        return list(FAMILIES)
    return [] if row.variant and check not in OF_VARIANTS else [row.name]


@pytest.mark.parametrize(
    ("row", "check"),
    [
        param(row, check, everyday=chosen(row, check.__name__), id=f"{check.__name__}-{row.name}")
        for row in ROWS  # one after the other, since checks of a row compare with the same run
        for check in METHOD_CHECKS
    ],
)
def test_the_contract(row: Row, check: Callable[[MethodCase], None]) -> None:
    check(case_of(row))


@each()
def test_models_that_differ_are_accepted_or_refused_as_the_row_says(row: Row) -> None:
    case = case_of(row)
    wanted, arm = case.ready(models=MIXED_FOR_TEXTS if case.texts else MIXED)
    errors = [finding.what for finding in examine(wanted, arm.task, [arm]) if finding.level == "error"]
    assert (errors == []) == row.mixes
    assert all(row.refusal in error for error in errors)


@each(everyday=FAMILIES)
def test_it_learns(row: Row) -> None:
    view, margin = row.learns
    views = learned(row)
    assert views[view] >= CHANCE + margin
    if row.beats_local is not None:
        assert views["client@global"] >= learned_alone()["client@global"] + row.beats_local


@cache
def learned_alone() -> dict[str, float]:
    return learned(ROWS[0])


def learned(row: Row) -> dict[str, float]:
    """Views after the last of six rounds."""
    wanted, arm = case_of(row).ready(**LEARNING)
    with ProcessExecutor(2, wanted, arm.task) as executor:
        return finish(arm, executor).records[-1].views
