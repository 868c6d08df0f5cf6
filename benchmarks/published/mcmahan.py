"""Rounds of FedAvg to 97 % on MNIST, as McMahan et al. (2017, arXiv 1602.05629, table 2) count them.

    FEDISTILL_DATA=FOLDER python benchmarks/published/mcmahan.py [--rows iid two-shards] [--seeds 0 1 2]
        [--rate 0.1] [--keep FOLDER]

Setting: 100 clients with 600 images each, drawn at random or as two of 200 shards of the images sorted by
label; 10 clients in each round, 1 local epoch, batches of 10, SGD without momentum; a network of
784-200-200-10 units with ReLU, 199,210 weights. The figure is where the curve of the best accuracy so far
crosses 97 %, between rounds by a straight line. The paper chose a rate for each row by that figure; ours is
0.1 for all, which was not chosen by any. Runs are kept in FOLDER: started again, they go on from their last
whole round.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kept import keep
from niid_bench import play
from torch import nn

from fedistill import Signature

PUBLISHED = {"iid": 87, "two-shards": 664}
CLIENTS, TARGET = 100, 0.97
AT_ONCE, MOST = 50, 1_500
"""Rounds that are played before the curve is looked at, and after which a run ends in any case."""


def two_layers(signature: Signature) -> nn.Module:
    """Return 2NN: two hidden layers of 200 units."""
    channels, height, width = signature.shape
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(channels * height * width, 200), nn.ReLU()),
        *(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, signature.classes)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--keep", type=Path, help="folder in which interrupted runs stay and go on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        for seed, row in itertools.product(arguments.seeds, arguments.rows):
            folder = (arguments.keep or Path(passing)) / f"{row}-{seed}-{arguments.rate:g}"
            found = run(row, seed, arguments.rate, folder)
            command = f"--rows {row} --seeds {seed} --rate {arguments.rate:g}"
            keep("mcmahan", row, seed, found, command, PUBLISHED[row])


def run(row: str, seed: int, rate: float, folder: Path) -> dict[str, Any]:
    """Play until 97 % is reached; return the rounds that it takes, and the bytes of the whole run."""
    from fedistill import parse

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.parquet").exists():
        deal(folder, row, seed)
    for rounds in range(AT_ONCE, MOST + 1, AT_ONCE):
        arm = play(parse(setting(folder, rounds, seed, rate), row), folder / "run", row)["arms"][0]
        accuracies = [one["views"]["server@global"] for one in arm["rounds"]]
        if max(accuracies) >= TARGET:
            break
    return {
        "rounds_to_97": crossing(accuracies, TARGET),
        "rounds": len(accuracies),
        "best": round(100 * max(accuracies), 2),
        "rate": rate,
        "bytes_total": arm["bytes_total"],
        "seconds": round(sum(one["seconds"] for one in arm["rounds"])),
    }


def deal(folder: Path, row: str, seed: int) -> None:
    """Write MNIST with a column that says which client has an image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = Path(os.environ["FEDISTILL_DATA"])
    train = pq.read_table(source / "mnist-train.parquet")
    random = np.random.default_rng(seed)
    order = random.permutation(len(train))
    if row == "two-shards":
        order = order[np.argsort(train["label"].to_numpy()[order], kind="stable")]
    shards = order.reshape(2 * CLIENTS, -1)
    if row == "two-shards":
        shards = shards[random.permutation(2 * CLIENTS)]
    owners = [f"{client:02}" for client in range(CLIENTS) for _ in range(2 * shards.shape[1])]
    dealt = train.take(pa.array(shards.ravel())).append_column("client", pa.array(owners))
    pq.write_table(dealt, folder / "train.parquet")


def setting(folder: Path, rounds: int, seed: int, rate: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "rounds": rounds,
        "task": {
            "format": "parquet",
            "train": str(folder / "train.parquet"),
            "test": str(Path(os.environ["FEDISTILL_DATA"]).resolve() / "mnist-test.parquet"),
            "clients": CLIENTS,
            "own_test_share": 0.0,  # all 600 images of a client are trained on
            "partition": {"kind": "natural", "column": "client"},
        },
        "models": {"clients": ["mcmahan:two_layers"], "server": "mcmahan:two_layers"},
        "train": {"epochs": 1, "batch_size": 10, "optimizer": {"name": "sgd", "lr": rate}},
        "sampling": {"fraction": 0.1},
        "runtime": {"kind": "serial"},
        "arms": [{"method": "fedavg"}],
    }


def crossing(accuracies: Sequence[float], target: float) -> float | None:
    """Return the round, from 1, at which the best accuracy so far first reaches the target.

    Between two rounds by a straight line; None if it does not.
    """
    best = 0.0
    for number, accuracy in enumerate(accuracies, start=1):
        if accuracy >= target:
            return number - 1 + (target - best) / (accuracy - best) if number > 1 else 1.0
        best = max(best, accuracy)
    return None


if __name__ == "__main__":
    main()
