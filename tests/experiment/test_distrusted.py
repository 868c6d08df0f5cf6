"""Results say how far each client was followed, and who was distrusted, by every family of methods."""

from collections.abc import Callable
from typing import Any

import pytest

from fedistill import Run, compare, parse
from fedistill.experiment.reliability import distrusted
from fedistill.testing.methods import (
    MethodCase,
    resumed_ends_as_never_stopped,
    worker_processes_end_in_the_same_bits,
)
from fedistill.testing.runs import MIXED, SAME

FAMILIES: dict[str, dict[str, Any]] = {
    "dsfl": {"aggregation": "reliability"},
    "voting": {"aggregation": "reliability"},
    "fedmd": {"pooling": "reliability"},
    "fedavg": {"averaging": "screened"},
    "feddf": {"averaging": "screened"},
    "fml": {"averaging": "median"},
    "fedkd": {"averaging": "norm-clipping"},
    "random-mask": {"averaging": "screened", "trained_share": 0.5, "lr_factor": 2.0},
    "fd-plus": {"pooling": "median", "averaging": "multi-krum"},
    "gaussian": {"screen": True},
    "ridge": {"screen": True},
}


def raw(**tables: Any) -> dict[str, Any]:
    return {
        "rounds": 2,
        "task": {"name": "digits", "clients": 5, "limit": 400, "public": 60},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"epochs": 3, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
        "evaluate": {"every": 2},
        "runtime": {"kind": "serial"},
        "attack": {"kind": "shifted-labels", "clients": [3]},
        "arms": [{"method": method, **settings} for method, settings in FAMILIES.items()],
    } | tables


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compare(parse(raw(), "test"), out=tmp_path_factory.mktemp("run") / "run", quiet=True)


@pytest.mark.parametrize("method", FAMILIES)
def test_the_liar_is_named(run: Run, method: str) -> None:
    arm = next(one for one in run.results["arms"] if one["name"] == method)
    assert arm["status"] == "done", arm["error"]
    assert arm["liars"] == [3]
    assert arm["distrusted"] == [3], arm["reliability"]
    assert set(arm["reliability"]) == set("01234")
    assert all(0 <= figure <= 1 for figure in arm["reliability"].values())
    first = arm["rounds"][0]["reliability"]
    assert min(first, key=lambda client: first[client]) == "3"


def test_whose_class_outputs_are_of_other_classes_is_named(tmp_path: Any) -> None:
    tables = {
        "attack": {"kind": "class-permuted", "clients": [1]},
        "arms": [{"method": "fd", "pooling": "median"}],
    }
    (arm,) = compare(parse(raw(**tables), "test"), out=tmp_path / "run", quiet=True).results["arms"]
    assert arm["distrusted"] == [1]


def test_whose_prototypes_are_boosted_is_named(tmp_path: Any) -> None:
    tables = {
        "attack": {"kind": "boosted", "clients": [1]},
        "arms": [{"method": method, "pooling": "median"} for method in ("fedproto", "fedtgp")],
    }
    found = compare(parse(raw(**tables), "test"), out=tmp_path / "run", quiet=True).results["arms"]
    assert [arm["distrusted"] for arm in found] == [[1], [1]]


def test_methods_that_follow_all_alike_say_nothing(tmp_path: Any) -> None:
    hidden = {"evaluate": {"hide_sites": True}, "arms": [{"method": "dsfl", "aggregation": "reliability"}]}
    alike = {"arms": [{"method": "dsfl"}, {"method": "fedavg"}]}
    for name, tables in {"hidden": hidden, "alike": alike}.items():
        found = compare(parse(raw(rounds=1, **tables), "test"), out=tmp_path / name, quiet=True)
        for arm in found.results["arms"]:
            assert "reliability" not in arm
            assert "distrusted" not in arm
            assert "reliability" not in arm["rounds"][0]
        assert '"reliability": {' not in (tmp_path / name / "events.jsonl").read_text()


STATES = {"dsfl": MIXED, "fedavg": SAME, "gaussian": MIXED}
"""Methods whose defence keeps something from one round to the next, and one whose defence does not."""


@pytest.mark.parametrize("method", STATES)
@pytest.mark.parametrize("check", [resumed_ends_as_never_stopped, worker_processes_end_in_the_same_bits])
def test_defences_end_in_the_same_bits(check: Callable[[MethodCase], None], method: str) -> None:
    check(MethodCase(method, STATES[method], FAMILIES[method]))


def test_who_is_distrusted() -> None:
    assert distrusted({"0": 0.8, "1": 0.41, "2": 0.39, "10": 0.9, "11": 0.8}) == [2]
    assert distrusted({"0": 1.0, "1": 0.0}) == [], "of two, none can be said to be the liar"
    assert distrusted({}) == []
