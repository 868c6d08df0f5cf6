"""The contract's table of methods: a new method is one row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fedistill.testing.runs import MIXED, MIXED_FOR_TEXTS, SAME, SAME_WIDTH

WIDTHS = "needs the same feature width in all clients' models, but they have cnn-s 128, mlp-s 64"


@dataclass(frozen=True)
class Row:
    """A method: settings for the tests, whether models may differ, and what it must reach on digits.

    ``learns`` is (view, margin): after 6 rounds the view must be at least chance plus the margin.
    ``beats_local`` names a margin over the control `local` on client@global where the method has one.
    ``refusal`` is part of what is said of models that differ where they may not.
    """

    method: str
    models: dict[str, Any]
    mixes: bool
    learns: tuple[str, float]
    beats_local: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    refusal: str = "need the same architecture"
    variant: str = ""

    @property
    def name(self) -> str:
        return self.method + self.variant

    @property
    def settings_for_texts(self) -> dict[str, Any]:
        """The settings, with statistics of words first where there are statistics of images."""
        words = {"name": "naive-bayes", "buckets": 500}
        return self.settings | ({"start": words} if "start" in self.settings else {})

    @property
    def settings_for_tables(self) -> dict[str, Any]:
        """The settings, with statistics of all columns where there are statistics of images first."""
        return self.settings | ({"start": {"name": "gaussian"}} if "start" in self.settings else {})


ROWS = [
    Row("local", MIXED, True, ("client@global", 0.4)),
    Row("server-alone", MIXED, True, ("server@global", 0.5)),
    Row("fedavg", SAME, False, ("server@global", 0.8)),
    Row("fedprox", SAME, False, ("server@global", 0.8)),
    Row(
        "random-mask", SAME, False, ("server@global", 0.6), settings={"trained_share": 0.5, "lr_factor": 2.0}
    ),
    # FD moves accuracy little (published: well below FedAvg), so its bar is chance and not `local`.
    Row("fd", MIXED, True, ("client@global", 0.4)),
    Row("fedmd", MIXED, True, ("client@global", 0.4), beats_local=0.02),
    Row("dsfl", MIXED, True, ("server@global", 0.7), beats_local=0.1),
    Row("cfd", MIXED, True, ("server@global", 0.5)),
    # A tenth of the few public samples that a test has would teach nobody.
    Row(
        "scarlet",
        MIXED,
        True,
        ("server@global", 0.6),
        beats_local=0.05,
        settings={"samples": 200, "distill_epochs": 3},
    ),
    Row("voting", MIXED, True, ("server@global", 0.7), beats_local=0.1),
    Row(
        "dsfl",
        MIXED,
        True,
        ("server@global", 0.7),
        beats_local=0.1,
        settings={"start": {"name": "gaussian", "width": 16}, "enough": 0.5},
        variant="-started",
    ),
    Row(
        "voting",
        MIXED,
        True,
        ("server@global", 0.6),
        settings={"start": {"name": "ridge", "width": 16}, "enough": 0.5, "samples": 100},
        variant="-started",
    ),
    # Three rounds of a test must reach the merges, although clients are away.
    Row(
        "bridge",
        MIXED,
        True,
        ("server@global", 0.7),
        settings={"vote_epochs": 4, "distill_epochs": 8, "enough": 0.5},
    ),
    Row(
        "bridge",
        MIXED,
        True,
        ("server@global", 0.7),
        settings={"vote_epochs": 4, "distill_epochs": 8, "enough": 0.5, "levels_first": False},
        variant="-at-once",
    ),
    Row(
        "bridge",
        MIXED,
        True,
        ("server@global", 0.7),
        settings={"vote_epochs": 4, "distill_epochs": 8, "enough": 0.5, "refine_labels": True},
        variant="-refined",
    ),
    Row(
        "voting",
        MIXED,
        True,
        ("server@global", 0.7),
        beats_local=0.1,
        settings={"refine_labels": True},
        variant="-refined",
    ),
    Row(
        "bridge",
        MIXED,
        True,
        ("server@global", 0.6),
        settings={
            "start": {"name": "gaussian", "width": 24},
            "vote_epochs": 4,
            "distill_epochs": 8,
            "enough": 0.2,
        },
        variant="-started",
    ),
    # Three rounds of a test must reach a merge.
    Row("tally-like", MIXED, True, ("server@global", 0.5), settings={"merge_every": 2}),
    Row("feddf", MIXED, True, ("server@global", 0.7)),
    Row("fedaux", MIXED, True, ("server@global", 0.7)),
    Row("fd-plus", SAME, False, ("server@global", 0.8)),
    # Prototypes serve each client on its own classes: none beats `local` on those of the others.
    Row("fedproto", SAME_WIDTH, False, ("client@own", 0.7), refusal=WIDTHS),
    Row("fedtgp", SAME_WIDTH, False, ("client@own", 0.7), refusal=WIDTHS),
    Row("fedgen", SAME, False, ("server@global", 0.8)),
    # What is shared is one linear layer on features that stay each client's own: `local` is not beaten.
    Row(
        "fedgen",
        SAME_WIDTH,
        False,
        ("client@own", 0.7),
        settings={"share": "predictor"},
        refusal=WIDTHS,
        variant="-predictor",
    ),
    # A client's own model meets the others' knowledge on its own samples only: on classes that it lacks
    # neither beats `local`.
    Row("fml", MIXED, True, ("server@global", 0.7)),
    Row("fedekd-like", MIXED, True, ("server@global", 0.7)),
    Row("fedkd", MIXED, True, ("server@global", 0.7)),
    Row("fed-et", MIXED, True, ("server@global", 0.6)),
    # The net sees of each client's features those of its own classes, and knows whose they are.
    Row(
        "fedgkt",
        SAME_WIDTH,
        False,
        ("server@global", 0.5),
        settings={"width": 64, "depth": 2},
        refusal=WIDTHS,
    ),
    # Clients hear nothing before the server is sure of something.
    Row("fedgems", MIXED, True, ("server@global", 0.6)),
    Row("comet", MIXED, True, ("client@global", 0.4), beats_local=0.02),
    # Of so few samples none may be clear at first.
    Row("selective-fd", MIXED, True, ("server@global", 0.6), settings={"ambiguity": 2.0}),
    Row("edge-fd", MIXED, True, ("server@global", 0.6)),
    Row("uwa-like", MIXED, True, ("server@global", 0.6), beats_local=0.05),
    Row("ridge", MIXED, True, ("server@global", 0.6)),
    Row("gaussian", MIXED, True, ("server@global", 0.6)),
    Row("naive-bayes", MIXED_FOR_TEXTS, True, ("server@global", 0.5)),
    # A network learns what the statistics say of the public samples; with this optimizer, words take long.
    Row(
        "gaussian",
        MIXED,
        True,
        ("server@global", 0.6),
        settings={"distill_epochs": 10},
        variant="-student",
    ),
    Row(
        "naive-bayes",
        MIXED_FOR_TEXTS,
        True,
        ("server@global", 0.1),
        settings={"distill_epochs": 30},
        variant="-student",
    ),
]

FAMILIES = (
    *("local", "fedavg", "random-mask", "fd", "dsfl", "voting", "bridge"),
    *("feddf", "fml", "fedproto", "gaussian", "naive-bayes"),
)
"""A method of each kind: where a test is about what methods have in common, those of the others are long."""


def each(rows: Sequence[Row] = ROWS, everyday: Sequence[str] | None = None) -> pytest.MarkDecorator:
    """Run a test for each row, ``row``; long are variants of a method, or all rows but those ``everyday``."""
    return pytest.mark.parametrize("row", [param(row, everyday=everyday) for row in rows])


def param(row: Row, *more: Any, everyday: Sequence[str] | None = None, id: str = "") -> Any:
    """Return a row, and more arguments of a test, as `each` does."""
    long = bool(row.variant) if everyday is None else row.name not in everyday
    return pytest.param(row, *more, id=id or row.name, marks=[pytest.mark.long] if long else [])
