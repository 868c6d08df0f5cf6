"""What do lying clients cost, and what do defences save?

    python benchmarks/attacks.py [--families labels ...] [--attacks random ...] [--shares 0.2 0.4] [--seeds 0]
    python benchmarks/attacks.py --hostile [--families labels ...]

Digits, 10 clients, Dirichlet 0.5, short runs: each family of methods in its default setting and in the one
that docs/trust.md recommends, under each attack that fits it, with no attack, and with the honest clients
alone (the control `silent`). Accuracy is the server's model on the test set after the last round; of methods
without one, the mean of the honest clients' models. Rows that are kept already are not run again, so that a
stopped benchmark goes on where it was. Defences were chosen on seeds 100 to 103, which are not among those
reported. `python docs/generate.py` makes the tables of docs/trust.md of what is kept.

Both settings of a family are tuned first with honest clients, as `fedistill tune` does: TRIALS trials of all
rounds on a validation part of the training set, at seed TUNED_ON, of what VARY has. The trials stay in
``--runs``.

With ``--hostile``, the same clients send numbers that mean nothing: huge, turned around, zero, or a thousand
times as large. Most are refused.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from kept import keep
from torch import Tensor
from tuning import settings_of, tune_alone, tuning_of, with_settings

from fedistill import parse
from fedistill.attacks.base import Liar, MessageAttack
from fedistill.attacks.parts import Part, Role
from fedistill.attacks.registry import ATTACKS
from fedistill.experiment.reliability import distrusted, mean_reliability
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.studies.goal import TunedArm
from fedistill.studies.search_space import Values, search_space
from fedistill.studies.tune import Plan

RESULTS = Path(__file__).parent / "results" / "attacks.json"
OF_HOSTILE = RESULTS.with_name("hostile.json")
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "labels": ({"method": "dsfl"}, {"aggregation": "reliability"}),
    "votes": ({"method": "voting"}, {"aggregation": "reliability"}),
    "weights": ({"method": "fedavg"}, {"averaging": "screened"}),
    "classwise": ({"method": "fd"}, {"pooling": "median"}),
    "prototypes": ({"method": "fedproto"}, {"pooling": "median"}),
    "logits": ({"method": "fedmd"}, {"pooling": "reliability"}),
    "statistics": ({"method": "gaussian"}, {"screen": True}),
}
"""The arm, and what the recommended setting adds to it."""
DEFENCES = ("none", "recommended")
CONTROLS = ("honest", "silent")
KINDS: dict[str, dict[str, Any]] = {
    "label-flip": {},
    "shifted-labels": {},
    "one-class": {},
    "random": {},
    "colluding": {},
    "least-likely": {},
    "class-permuted": {},
    "little-is-enough": {},
    "sign-flip": {},
    "boosted": {"factor": 10.0},
    "boosted -5": {"factor": -5.0},
}
ROUNDS = 4
TRIALS, TUNED_ON = 12, 100
VARY: dict[str, Values | None] = {
    "train.epochs": (1, 2, 4, 8),
    "train.optimizer.lr": None,
    "train.loss": None,
    "train.label_smoothing": None,
    "distill_epochs": None,
    "digest_epochs": None,
    "gamma": None,
    "weight": None,
    "levels": None,
}
"""Where the setting is of use to the method. What settings say of lies stays as it is."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--attacks", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 0.4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--hostile", action="store_true", help="replies that no correct client can send")
    parser.add_argument("--out", type=Path, help="the file of the rows; default: that of the docs")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "attacks")
    given = parser.parse_args()
    names = list(HOSTILE) if given.hostile else given.attacks
    out = given.out or (OF_HOSTILE if given.hostile else RESULTS)
    for share in given.shares[:1] if given.hostile else given.shares:
        for seed in given.seeds:
            for family in given.families:
                for defence in DEFENCES:
                    for name in (*CONTROLS, *names):
                        measure(out, share, seed, family, defence, name, given.runs)


def measure(out: Path, share: float, seed: int, family: str, defence: str, name: str, runs: Path) -> None:
    """Run one arm under one attack and keep its row, unless it is kept already or the attack does not fit."""
    setting, row = f"share {share}, seed {seed}", f"{family}/{defence}/{name}"
    if row in (json.loads(out.read_text()).get(setting, {}) if out.exists() else {}):
        return
    started = time.perf_counter()
    tuned = tune_honest(family, defence, runs)
    arm, run = play(share, seed, family, defence, name, tuned)
    if run is None:
        return
    last = mean_reliability(run.records)
    found = {
        "accuracy": round(accuracy(arm, run), 4),
        "liars": list(arm.liars),
        "distrusted": distrusted(last) if last else None,
        "refused": sorted({int(client) for record in run.records for client in record.missing}),
        "settings": settings_of(tuned),
        "tuning": tuning_of(tuned),
        "seconds": round(time.perf_counter() - started, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(f"{setting}, {row}: {found}", flush=True)
    keep(out, setting, row, found)


@cache
def tune_honest(family: str, defence: str, runs: Path) -> TunedArm:
    """Tune an arm, if that is not done yet, whose clients are all honest."""
    command = f"python benchmarks/attacks.py --families {family}"
    experiment = parse(honest(TUNED_ON, family, defence), "attacks")
    usual = search_space(experiment.arms[0], "image", {})
    vary = {key: values for key, values in VARY.items() if key in usual}
    return tune_alone(experiment, Plan(TRIALS, ROUNDS, vary=vary), runs / family / defence, command, "image")


def honest(seed: int, family: str, defence: str) -> dict[str, Any]:
    arm, added = FAMILIES[family]
    return {
        "seed": seed,
        "rounds": ROUNDS,
        "task": {
            "name": "digits",
            "clients": 10,
            "public": 400,
            "partition": {"kind": "dirichlet", "alpha": 0.5, "min_samples": 10},
        },
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"epochs": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
        "evaluate": {"every": ROUNDS},
        "flower": {"quorum": 0.1},
        "runtime": {"kind": "serial"},
        "arms": [{**arm, **(added if defence == "recommended" else {})}],
    }


def play(
    share: float, seed: int, family: str, defence: str, name: str, tuned: TunedArm
) -> tuple[ReadyArm, ArmRun | None]:
    """Return the arm and its run; None in place of the run if the attack does not fit the arm's method."""
    raw = honest(seed, family, defence)
    if name in KINDS:
        raw["attack"] = {"kind": name.split()[0], "share": share, **KINDS[name]}
    elif name == "silent" or name in HOSTILE:
        raw["attack"] = {"kind": "silent", "share": share}
    experiment = with_settings(parse(raw, "attacks"), tuned, "image")
    task, (ready,) = prepare(experiment)
    if name in HOSTILE:
        hostile = Hostile(kind="hostile", share=share)
        hostile._name = name
        ready = replace(ready, attack=hostile)
    if ready.attack is not None and not ready.attack.fits(ready.method):
        return ready, None
    run = start_run(ready)
    executor = SerialExecutor(experiment, task)
    executor._arms[ready.name] = ready
    while run.round < ROUNDS:
        play_round(run, ready, executor)
    return ready, run


def accuracy(arm: ReadyArm, run: ArmRun) -> float:
    """Return the accuracy of the server's model, or the mean of the honest clients'."""
    views = run.records[-1].views
    if "server@global" in views:
        return views["server@global"]
    correct = [sum(scores.correct) for client, scores in run.scores.items() if client not in arm.liars]
    return sum(correct) / len(correct) / len(arm.task.test)


HOSTILE: dict[str, Any] = {
    "huge": lambda values: torch.full_like(values, 1e38),
    "negative": lambda values: -values,
    "zero": torch.zeros_like,
    "x 1000": lambda values: values * 1000,
}
"""Lies about numbers, whatever they mean; most are refused, as lies of `[attack]` seldom are."""


class Hostile(MessageAttack):
    """Sends numbers that no correct client sends."""

    kind: str = "hostile"
    source = "tests/contract/test_hostile.py"
    roles = frozenset(Role) - {Role.CHANGES}
    _name: str = ""

    def lie(self, part: Part, liar: Liar) -> Tensor:
        lied: Tensor = HOSTILE[self._name](part.values)
        return lied


if __name__ == "__main__":
    assert set(ATTACKS) >= {name.split()[0] for name in KINDS}
    main()
