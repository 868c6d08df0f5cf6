"""FedProto on MNIST, 3 classes a client, in the setting of Tan et al. (2022, arXiv 2105.00243, table 1).

    python benchmarks/published/fedproto.py [--rounds 100] [--arms local fedavg fedproto] [--seeds 0]

Setting: 20 clients, each with 2 to 5 classes of 99 or 100 samples, no sample at two clients; all take part;
1 local epoch, batch 4, SGD with lr 0.01 and momentum 0.5; a CNN of 21,840 weights; lambda 1. Figures are
for each client's own classes: here of 3,000 test samples, all classes to choose from, mean and deviation
over the clients after the last round; of several seeds, the mean of both. FedAvg's are those of its one
model. Needs $FEDISTILL_DATA with MNIST.

The published figures are not quite that. The published test adds up right answers over the clients without
starting afresh, for each first those of its classifier and then those of the nearest prototype, so that its
deviation is one of running means; and nearest are prototypes of the client's own classes alone. For
FedProto that figure is given too: ``as_published``, from the classifiers, ``own``, and the nearest of own
classes, ``nearest``.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import keep
from torch import nn

from fedistill import Signature

PUBLISHED = {"local": (94.05, 2.93), "fedavg": (95.04, 6.48), "fedproto": (97.13, 0.30)}
CLIENTS, TESTED = 20, 3000


def cnn(signature: Signature) -> nn.Module:
    """Convolutions of 10 and 20 channels (5x5), 50 units, dropout before and behind them."""
    return nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(50, signature.classes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            split(Path(folder), seed)
            for method in arguments.arms:
                found = run(method, Path(folder), arguments.rounds, seed)
                command = f"--rounds {arguments.rounds} --arms {method} --seeds {seed}"
                keep("fedproto", method, seed, found, command, PUBLISHED[method])


def split(folder: Path, seed: int) -> None:
    """Write MNIST with a column that says which client has a sample, as the published code deals them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = Path(os.environ["FEDISTILL_DATA"])
    train = pq.read_table(source / "mnist-train.parquet")
    labels = train["label"].to_numpy()
    random = np.random.default_rng(seed)
    rows: list[int] = []
    owners: list[str] = []
    pools = [iter(random.permutation(np.flatnonzero(labels == c)).tolist()) for c in range(10)]
    for client in range(CLIENTS):
        classes = random.choice(10, size=random.integers(2, 6), replace=False)
        shots = random.integers(99, 101)
        mine = [next(pools[c]) for c in classes for _ in range(shots)]
        rows += mine
        owners += [f"{client:02}"] * len(mine)
    dealt = train.take(pa.array(rows)).append_column("client", pa.array(owners))
    pq.write_table(dealt, folder / "train.parquet")
    tested = pq.read_table(source / "mnist-test.parquet")
    places = np.sort(random.permutation(len(tested))[:TESTED])
    pq.write_table(tested.take(pa.array(places)), folder / "test.parquet")


def setting(method: str, folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "rounds": rounds,
        "task": {
            "format": "parquet",
            "train": str(folder / "train.parquet"),
            "test": str(folder / "test.parquet"),
            "clients": CLIENTS,
            "partition": {"kind": "natural", "column": "client"},
        },
        "models": {"clients": ["fedproto:cnn"], "server": "fedproto:cnn"},
        "train": {"batch_size": 4, "optimizer": {"lr": 0.01, "momentum": 0.5}},
        "evaluate": {"every": rounds + 1},
        "arms": [{"method": method}],
    }


def run(method: str, folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Play one arm; return its figures every tenth of the rounds, and its bytes."""
    from fedistill import parse
    from fedistill.experiment.runner import prepare
    from fedistill.federation.local_executor import SerialExecutor
    from fedistill.federation.round import play_round
    from fedistill.federation.setup import start_run

    wanted = parse(setting(method, folder, rounds, seed), method)
    task, (arm,) = prepare(wanted)
    state = start_run(arm)
    curve: dict[int, dict[str, Any]] = {}
    started = time.perf_counter()
    with SerialExecutor(wanted, task) as executor:
        while state.round < rounds:
            play_round(state, arm, executor)
            if state.round % max(1, rounds // 10) == 0 or state.round == rounds:
                curve[state.round] = measure(arm, state)
                print(f"{method} round {state.round}: {curve[state.round]}", flush=True)
    first = state.records[-1].traffic
    return {
        "last": curve[rounds],
        "curve": {round: figures["own"][0] for round, figures in curve.items()},
        "bytes_last_round": {
            way: sum(e.bytes for e in first if e.direction == way) for way in ("up", "down")
        },
        "rounds": rounds,
        "bytes_total": state.ledger.total,
        "seconds": round(time.perf_counter() - started),
    }


def measure(arm: Any, run: Any) -> dict[str, Any]:
    """Percent right of each client's own classes: mean and deviation over the clients."""
    from fedistill.federation.client import method_state
    from fedistill.models.features import Split
    from fedistill.training.loop import predict

    test, shares = arm.task.test, arm.task.class_counts().double()
    own: list[float] = []
    nearest: list[float] = []
    for client in range(CLIENTS):
        held = shares[client] > 0
        mine = held[test.labels]
        inputs, labels = test.samples[mine], test.labels[mine]
        site = arm.client(client, 0)
        weights = run.server.get("model")
        if weights is None:
            weights = method_state(run.clients[client])["model"]
        split = Split(site.load(weights), site.model, site.signature)
        own.append(by_class(predict(split, inputs, 10_000).argmax(dim=1), labels, shares[client]))
        if "prototypes" in run.server:
            distances = torch.cdist(split.features, run.server.prototypes)
            distances[:, ~held] = torch.inf
            nearest.append(by_class(distances.argmin(dim=1), labels, shares[client]))
    figures = {"own": spread(own)}
    if nearest:
        running = np.cumsum(np.stack([own, nearest], axis=1)) / np.arange(1, 2 * CLIENTS + 1)
        figures |= {"nearest": spread(nearest), "as_published": spread(running[1::2].tolist())}
    return figures


def by_class(answers: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> float:
    """Accuracy with the classes weighted as in the client's private data."""
    classes = counts.nonzero().flatten().tolist()
    right = torch.tensor([(answers[labels == c] == c).double().mean() for c in classes])
    return float((right * counts[classes]).sum() / counts.sum())


def spread(values: list[float]) -> list[float]:
    return [round(100 * float(np.mean(values)), 2), round(100 * float(np.std(values)), 2)]


if __name__ == "__main__":
    main()
