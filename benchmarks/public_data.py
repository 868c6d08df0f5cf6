"""What do methods reach if public images are sent, made of few, drawn, or only at the server?

    python benchmarks/public_data.py TRAIN.parquet [--seed 0] [--ways NAME ...] [--arms NAME ...]

Fashion-MNIST, 10 clients, Dirichlet 0.3, 10,000 private images; a twentieth of the training file is held out
and stands for the test set, which is never read. `bridge`, `voting` and `dsfl` with each of WAYS to a public
set, and arms whose clients have none. docs/public-data.md shows what is kept.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation import local_executor
from fedistill.federation.arm import start_run
from fedistill.federation.round import play_round

RESULTS = Path(__file__).parent / "results" / "public-data.json"
WAYS: dict[str, Any] = {
    "2000 images": 2000,
    "200 images, WebP": {"samples": 200, "quality": 0},
    "60 images, WebP": {"samples": 60, "quality": 0},
    "made of 40": {"samples": 2000, "images": 40, "quality": 0},
    "made of 20": {"samples": 2000, "images": 20, "quality": 0},
    "made of 10": {"samples": 2000, "images": 10, "quality": 0},
    "1000 made of 20": {"samples": 1000, "images": 20, "quality": 0},
    "drawn": {"samples": 2000, "images": 0},
}
ARMS: dict[str, dict[str, Any]] = {
    "bridge": {"method": "bridge"},
    "voting": {"method": "voting", "aggregation": "prior-corrected", "distill_epochs": 3},
    "dsfl": {
        "method": "dsfl",
        "codec": "simplex(bits=2)",
        "aggregation": "prior-corrected",
        "distill_epochs": 3,
    },
    "fedavg": {"method": "fedavg", "codec": "stc(share=0.05)"},
    "feddf": {"method": "feddf", "codec": "stc(share=0.05)"},
    "random-mask": {"method": "random-mask"},
}
ROUNDS = {"bridge": 12, "random-mask": 15, "voting": 4, "dsfl": 4, "fedavg": 6, "feddf": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="Parquet file of Fashion-MNIST's training set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    arguments = parser.parse_args()
    for way in arguments.ways:
        for name in arguments.arms:
            measure(arguments.train, way, name, arguments.seed)


def measure(train: Path, way: str, name: str, seed: int) -> None:
    raw = {
        "seed": seed,
        "rounds": ROUNDS[name],
        "task": {
            "format": "parquet",
            "train": str(train),
            "test_share": 0.05,
            "limit": 10_000,
            "public": WAYS[way],
            "clients": 10,
            "partition": {"kind": "dirichlet", "alpha": 0.3},
        },
        "models": {"clients": ["cnn-s"], "server": "cnn-s"},
        "train": {
            "epochs": 5,
            "batch_size": 32,
            "loss": "balanced-softmax",
            "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
        },
        "runtime": {"kind": "serial"},
        "arms": [{"name": name, **ARMS[name]}],
    }
    experiment = parse(raw, "public data")
    data, (arm,) = prepare(experiment)
    run, started = start_run(arm), time.perf_counter()
    with local_executor.start_executor(experiment, data) as executor:
        while run.round < ROUNDS[name]:
            play_round(run, arm, executor)
    curve, sent = [], 0
    for record in run.records:
        sent += sum(entry.bytes for entry in run.ledger.of_round(record.round))
        curve.append([sent, round(record.views["server@global"], 4)])
    print(f"{way}, {name}, seed {seed}: public {run.ledger.public}, {curve}", flush=True)
    keep(
        RESULTS,
        f"seed {seed}",
        f"{way}/{name}",
        {
            "curve": curve,
            "public": run.ledger.public,
            "seconds": round(time.perf_counter() - started),
            "arm": ARMS[name],
            "task.public": WAYS[way],
            "command": f'python benchmarks/public_data.py TRAIN.parquet --seed {seed} --ways "{way}"'
            f" --arms {name}",
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


if __name__ == "__main__":
    main()
