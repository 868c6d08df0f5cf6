"""Which pairs of local loss and aggregation hold up under strong label skew?

    python benchmarks/skew.py TRAIN.parquet [--scale small] [--alpha 0.1] [--seed 0] [--arms NAME ...]

Fashion-MNIST, 10 clients, Dirichlet of ``--alpha``; the server's model after each of 5 rounds of DS-FL, for
pairs of LOSSES and AGGREGATIONS, of voting with VOTES, of OTHERS and of FedAvg with each loss. A twentieth
of the training file is held out and stands for the test set, which is never read. `small` has a quarter of
the images of `full`. Clients and server have one model of 106,000 parameters, below. An arm is named
LOSS/AGGREGATION, LOSS/VOTES, LOSS/OTHER or LOSS/fedavg. Of COMET, whose server has no model, it is the mean
of the clients'. docs/label-skew.md shows what is kept.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep
from torch import nn

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.experiment.task_checks import label_skew
from fedistill.federation import local_executor
from fedistill.federation.arm import start_run
from fedistill.federation.round import play_round
from fedistill.models.signature import Signature

RESULTS = Path(__file__).parent / "results" / "skew.json"
ROUNDS = 5
SCALES = {"full": (20_000, 8_000), "small": (5_000, 2_000)}
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "smoothing": {"label_smoothing": 0.1},
    "not-true": {"not_true": {"beta": 1.0}},
    "balanced": {"loss": "balanced-softmax"},
    "balanced-not-true": {"loss": "balanced-softmax", "not_true": {"beta": 1.0}},
}
AGGREGATIONS: dict[str, Any] = {
    "mean": "mean",
    "era": "era",
    "enhanced-era": "enhanced-era",
    "confidence": "confidence",
    "prior-1": {"name": "prior-corrected", "sharpness": 1.0},
    "prior-3": {"name": "prior-corrected", "sharpness": 3.0},
    "prior-10": {"name": "prior-corrected", "sharpness": 10.0},
    "dawid-skene": "dawid-skene",
    "median": "median",
    "trimmed": "trimmed",
    "majority": "majority",
}
VOTES: dict[str, Any] = {
    "votes-majority": "majority",
    "votes-prior": "prior-corrected",
    "votes-dawid-skene": "dawid-skene",
}
OTHERS: dict[str, dict[str, Any]] = {
    f"{method}{name}": {"method": method, **given}
    for method in ("scarlet", "fedgems", "comet", "selective-fd", "edge-fd")
    for name, given in {"": {}, "-prior": {"aggregation": "prior-corrected"}}.items()
}
TRAIN = {"epochs": 1, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9}}


def cnn(signature: Signature) -> nn.Module:
    """Convolutions of 16 and 32 channels, each pooled, and a hidden layer of 64."""
    channels, height, width = signature.shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, signature.classes),
    )


def main() -> None:
    names = [f"{loss}/{pool}" for loss in LOSSES for pool in (*AGGREGATIONS, *VOTES, *OTHERS, "fedavg")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="Parquet file of Fashion-MNIST's training set")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--alpha", type=float, default=0.1, help="of the partition; small is skewed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="NAME")
    arguments = parser.parse_args()
    private, public = SCALES[arguments.scale]
    raw = {
        "seed": arguments.seed,
        "rounds": ROUNDS,
        "task": {
            "format": "parquet",
            "train": str(arguments.train),
            "test_share": 0.05,
            "limit": private,
            "public": public,
            "clients": 10,
            "partition": {"kind": "dirichlet", "alpha": arguments.alpha},
        },
        "models": {"clients": ["skew:cnn"], "server": "skew:cnn"},
        "runtime": {"kind": "serial"},
        "arms": [arm(name) for name in arguments.arms],
    }
    experiment = parse(raw, "skew")
    data, ready = prepare(experiment)
    print(f"label skew {label_skew(data):.3f}", flush=True)
    for prepared in ready:
        run, started = start_run(prepared), time.perf_counter()
        with local_executor.start_executor(experiment, data) as executor:
            while run.round < ROUNDS:
                play_round(run, prepared, executor)
        view = "server@global" if prepared.method.has_server_model else "client@global"
        curve = [round(record.views[view], 4) for record in run.records]
        print(f"{prepared.name}: {curve}", flush=True)
        keep(
            RESULTS,
            f"{arguments.scale}, alpha {arguments.alpha}, seed {arguments.seed}",
            prepared.name,
            {
                "accuracy": curve,
                "view": view,
                "bytes": run.ledger.total,
                "seconds": round(time.perf_counter() - started),
                "arm": arm(prepared.name),
                "private": private,
                "public": public,
                "label_skew": round(label_skew(data), 3),
                "command": f"python benchmarks/skew.py TRAIN.parquet --scale {arguments.scale}"
                f" --alpha {arguments.alpha} --seed {arguments.seed} --arms {prepared.name}",
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )


def arm(name: str) -> dict[str, Any]:
    loss, pool = name.split("/")
    method = {"method": "fedavg"}
    if pool in AGGREGATIONS:
        method = {"method": "dsfl", "aggregation": AGGREGATIONS[pool]}
    if pool in OTHERS:
        method = OTHERS[pool]
    if pool in VOTES:
        method = {"method": "voting", "aggregation": VOTES[pool]}
    return {"name": name, **method, "train": {**TRAIN, **LOSSES[loss]}}


if __name__ == "__main__":
    main()
