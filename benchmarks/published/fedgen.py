"""FedAvg, FedDistill, FedDistill+ and FedGen on MNIST, in the setting of FedGen (Zhu et al., 2021, table 1).

    python benchmarks/published/fedgen.py [--alphas 0.1 1] [--arms fedavg fd fd-plus fedgen] [--seeds 0]

Setting, from the paper and its published code: 20 clients, 10 of them a round, 200 rounds, 20 local steps
of batch 32, SGD with lr 0.01; convolutions of 6 and 16 channels (3x3, stride 2) with batch norm, then 32
units. The code keeps at most 1,500 samples of each class, so 15,000 in all, where the paper says half of
the training set. FedGen: generator of 256 units, noise 32, Adam lr 3e-4 with weight decay 1e-2, 50 steps of
batch 128, alpha 10 with a decay of .98 a round.

What differs. The published figure is of each client's own classes: a client is tested on test samples of
the classes that it holds, by the averaged weights with its own batch-norm statistics, which that code never
averages; ours is the averaged model, statistics included, on the whole test set. FedDistill there is
another method than Jeong's (raw logits, sums that are never reset), whose clients are tested; ours has no
server model, so `client@own` stands for it, and `client@global` beside it. Rates there decay by 1 % a
round; ours do not. Needs $FEDISTILL_DATA with MNIST.
"""

import argparse
import time
from typing import Any

import torch
from kept import keep
from torch import nn

from fedistill import Signature

PUBLISHED = {
    "fedavg": {"0.1": (90.16, 0.59), "1": (93.84, 0.25)},
    "fd": {"0.1": (64.11, 1.36), "1": (79.88, 0.66)},
    "fd-plus": {"0.1": (90.28, 0.89), "1": (94.73, None)},
    "fedgen": {"0.1": (93.03, 0.32), "1": (95.52, 0.07)},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "fd": {"gamma": 1.0},
    "fd-plus": {"gamma": 1.0},
    "fedgen": {"weight": 10.0, "decay": 0.98},
}
ROUNDS = 200


def cnn(signature: Signature) -> nn.Module:
    """Convolutions of 6 and 16 channels, each with batch norm, and a hidden layer of 32."""
    return nn.Sequential(
        *(nn.Conv2d(signature.shape[0], 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, signature.classes)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alphas", nargs="+", choices=("0.1", "1"), default=["0.1", "1"])
    parser.add_argument("--arms", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for alpha in arguments.alphas:
            for method in arguments.arms:
                found = run(method, float(alpha), arguments.rounds, seed)
                command = f"--rounds {arguments.rounds} --alphas {alpha} --arms {method} --seeds {seed}"
                keep("fedgen", f"{method}, alpha {alpha}", seed, found, command, PUBLISHED[method][alpha])


def setting(method: str, alpha: float, rounds: int, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "rounds": rounds,
        "task": {
            "name": "mnist",
            "limit": 15_000,
            "clients": 20,
            "partition": {"kind": "dirichlet", "alpha": alpha, "min_samples": 10},
        },
        "models": {"clients": ["fedgen:cnn"], "server": "fedgen:cnn"},
        "train": {"steps": 20, "batch_size": 32, "optimizer": {"lr": 0.01}},
        "sampling": {"fraction": 0.5},
        "evaluate": {"every": 10},
        "runtime": {"kind": "serial"},
        "arms": [{"method": method, **SETTINGS.get(method, {})}],
    }


def run(method: str, alpha: float, rounds: int, seed: int) -> dict[str, Any]:
    """Play one arm; return its views every tenth round, and its bytes."""
    from fedistill import parse
    from fedistill.experiment.runner import prepare
    from fedistill.federation import local_executor
    from fedistill.federation.round import play_round
    from fedistill.federation.setup import start_run

    wanted = parse(setting(method, alpha, rounds, seed), method)
    task, (arm,) = prepare(wanted)
    state, started = start_run(arm), time.perf_counter()
    with local_executor.SerialExecutor(wanted, task) as executor:
        while state.round < rounds:
            record = play_round(state, arm, executor)
            if record.views:
                print(f"{method} alpha {alpha} seed {seed} round {record.round}: {record.views}", flush=True)
    views = {record.round: record.views for record in state.records if record.views}
    return {
        "views": {
            round: {name: round_(value) for name, value in found.items()} for round, found in views.items()
        },
        "rounds": rounds,
        "bytes_total": state.ledger.total,
        "seconds": round_(time.perf_counter() - started, 1),
    }


def round_(value: float, scale: float = 100) -> float:
    return round(scale * value, 2)


if __name__ == "__main__":
    main()
