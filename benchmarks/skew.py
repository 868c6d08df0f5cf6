"""Which pairs of local loss and aggregation hold up under strong label skew?

    python benchmarks/skew.py TRAIN.parquet [--alpha 0.1] [--seed 0] [--arms NAME ...] [--runs FOLDER]

Fashion-MNIST, 10 clients with 5,000 private images, 1,000 public ones, Dirichlet of ``--alpha``, mlp-s; the
server's model after each of 8 rounds. An arm is named LOSS/SERVER, for what the clients minimise and what the
server does; ARMS has them. A twentieth of the training file is held out and stands for the test set, which is
never read. Of COMET, whose server has no model, it is the mean of the clients'.

Each arm is tuned first, as `fedistill tune` does: TRIALS trials of TRIAL_ROUNDS rounds on a further part of
the training images, at Dirichlet 0.1 and seed 0, of what VARY has. Its best settings are carried over to the
other seeds and partitions. The trials stay in ``--runs``. docs/label-skew.md shows what is kept.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep
from tuning import settings_of, tune_alone, tuning_of, with_settings

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.experiment.runner import prepare
from fedistill.experiment.task_checks import label_skew
from fedistill.federation import local_executor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.studies.search_space import Values
from fedistill.studies.tune import Plan

RESULTS = Path(__file__).parent / "results" / "skew.json"
ROUNDS = 8
PRIVATE, PUBLIC = 5_000, 1_000
TRIALS, TRIAL_ROUNDS = 8, 3
TUNED_ON = {"alpha": 0.1, "seed": 0}
VARY: dict[str, Values | None] = {
    "train.epochs": (1, 3, 8),
    "train.optimizer.lr": None,
    "distill_epochs": (1, 3),
}
"""Where the method has the setting."""
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "not-true": {"not_true": {"beta": 1.0}},
    "balanced": {"loss": "balanced-softmax"},
}
SERVERS: dict[str, dict[str, Any]] = {
    "fedavg": {"method": "fedavg"},
    **{
        name: {"method": "dsfl", "aggregation": name}
        for name in ("mean", "era", "dawid-skene", "median", "reliability")
    },
    "prior-3": {"method": "dsfl", "aggregation": {"name": "prior-corrected", "sharpness": 3.0}},
    "votes-majority": {"method": "voting", "aggregation": "majority"},
    "votes-prior": {"method": "voting", "aggregation": "prior-corrected"},
    "edge-fd": {"method": "edge-fd"},
    "scarlet-prior": {"method": "scarlet", "aggregation": "prior-corrected"},
    "comet-prior": {"method": "comet", "aggregation": "prior-corrected"},
}
ARMS = (
    "cross-entropy/era",
    "balanced/prior-3",
    "cross-entropy/fedavg",
    "balanced/fedavg",
    "cross-entropy/mean",
    "cross-entropy/prior-3",
    "balanced/mean",
    "not-true/prior-3",
    "balanced/votes-prior",
    "balanced/votes-majority",
    "cross-entropy/edge-fd",
    "cross-entropy/dawid-skene",
    "balanced/reliability",
    "balanced/median",
    "balanced/scarlet-prior",
    "balanced/comet-prior",
)
TRAIN = {"epochs": 1, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="Parquet file of Fashion-MNIST's training set")
    parser.add_argument("--alpha", type=float, default=0.1, help="of the partition; small is skewed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "skew")
    arguments = parser.parse_args()
    for name in arguments.arms:
        measure(arguments.train, arguments.alpha, arguments.seed, name, arguments.runs)


def measure(train: Path, alpha: float, seed: int, name: str, runs: Path) -> None:
    """Tune an arm, if that is not done yet, and keep a row of its best settings."""
    command = f"python benchmarks/skew.py TRAIN.parquet --alpha {alpha} --seed {seed} --arms {name}"
    tuned_on = experiment(train, TUNED_ON["alpha"], int(TUNED_ON["seed"]), name)
    plan = Plan(TRIALS, TRIAL_ROUNDS, vary=VARY)
    tuned = tune_alone(tuned_on, plan, runs / name.replace("/", "-"), command, "image")
    settings = settings_of(tuned)
    asked = with_settings(experiment(train, alpha, seed, name), tuned, "image")
    data, (arm,) = prepare(asked)
    run, started = start_run(arm), time.perf_counter()
    with local_executor.start_executor(asked, data) as executor:
        while run.round < ROUNDS:
            play_round(run, arm, executor)
    view = "server@global" if arm.method.has_server_model else "client@global"
    curve = [round(record.views[view], 4) for record in run.records if view in record.views]
    print(f"{alpha} {seed} {name}: {settings} {curve}", flush=True)
    row = {
        "accuracy": curve,
        "view": view,
        "bytes": run.ledger.total,
        "seconds": round(time.perf_counter() - started),
        "arm": {"name": name, **SERVERS[name.split("/")[1]]},
        "train": {**TRAIN, **LOSSES[name.split("/")[0]]},
        "settings": settings,
        **tuning_of(tuned),
        "label_skew": round(label_skew(data), 3),
        "command": command,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    keep(RESULTS, f"alpha {alpha}, seed {seed}", name, row)


def experiment(train: Path, alpha: float, seed: int, name: str) -> Experiment:
    loss, server = name.split("/")
    raw = {
        "seed": seed,
        "rounds": ROUNDS,
        "task": {
            "format": "parquet",
            "train": str(train),
            "test_share": 0.05,
            "limit": PRIVATE,
            "public": PUBLIC,
            "clients": 10,
            "partition": {"kind": "dirichlet", "alpha": alpha},
        },
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "runtime": {"kind": "serial"},
        "evaluate": {"clients": ROUNDS},  # one figure of clients' models is enough
        "arms": [{"name": name, **SERVERS[server], "train": {**TRAIN, **LOSSES[loss]}}],
    }
    return parse(raw, "skew")


if __name__ == "__main__":
    main()
