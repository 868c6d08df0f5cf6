"""What do methods reach if public images are sent, made of few, drawn, or not needed?

    python benchmarks/public_data.py TRAIN.parquet [--seed 0] [--ways NAME ...] [--arms NAME ...]

Fashion-MNIST, 10 clients, Dirichlet 0.3, 10,000 private images; a twentieth of the training file is held out
and stands for the test set, which is never read. Arms of WITH_PUBLIC with each of WAYS to a public set, and
those of WITHOUT, which need none, once. Arms have the settings in results/flagship-images.toml, each tuned by
as many trials (`python benchmarks/flagship.py --tune images`). docs/public-data.md shows what is kept.
"""

import argparse
import platform
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from kept import keep

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation import local_executor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run

RESULTS = Path(__file__).parent / "results" / "public-data.json"
TUNED: dict[str, Any] = tomllib.loads((RESULTS.parent / "flagship-images.toml").read_text())
WAYS: dict[str, Any] = {
    "2000 images": 2000,
    "60 images, WebP": {"samples": 60, "quality": 0},
    "made of 20": {"samples": 2000, "images": 20, "quality": 0},
    "drawn": {"samples": 2000, "images": 0},
}
ROUNDS = {
    "bridge": 8,
    "voting-1000": 4,
    "random-mask": 12,
    "fedavg-stc": 8,
    "fedavg-qsgd": 8,
    "gaussian": 8,
    "ridge": 8,
}
WITH_PUBLIC = ("bridge", "voting-1000")
WITHOUT = ("random-mask", "fedavg-stc", "fedavg-qsgd", "gaussian", "ridge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="Parquet file of Fashion-MNIST's training set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    parser.add_argument("--arms", nargs="+", choices=ROUNDS, default=list(ROUNDS), metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.arms:
        for way in ("none",) if name in WITHOUT else arguments.ways:
            measure(arguments.train, way, name, arguments.seed)


def measure(train: Path, way: str, name: str, seed: int) -> None:
    arm_settings = next(arm for arm in TUNED["arms"] if arm.get("name", arm["method"]) == name)
    asked = TUNED["task"] | {
        "format": "parquet",
        "train": str(train),
        "test_share": 0.05,
        "public": WAYS.get(way, 2000),
    }
    raw = {
        **TUNED,
        "seed": seed,
        "rounds": ROUNDS[name],
        "task": {key: value for key, value in asked.items() if key != "name"},
        "arms": [arm_settings],
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
            "arm": arm_settings,
            "task.public": WAYS.get(way),
            "command": f"python benchmarks/public_data.py TRAIN.parquet --seed {seed} --arms {name}"
            + ("" if name in WITHOUT else f' --ways "{way}"'),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


if __name__ == "__main__":
    main()
