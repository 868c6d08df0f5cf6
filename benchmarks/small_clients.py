"""Rounds of many small clients, exact and fast, against a plain PyTorch loop over the same batches.

    FEDISTILL_DATA=FOLDER python benchmarks/small_clients.py [--only W5] [--repeats 9]

W4: FedAvg on Fashion-MNIST, 200 clients x 100 images, all of them in every round, batch 32.
W5: FedAvg on the same, 10,000 clients x 6 images, of which 200 take part in a round.

The network is `mlp-s`, 784-64-10, with SGD and momentum, one epoch. Everything is in one process and one
thread: the plain loop has its images as float tensors and exchanges tensors in place of frames; fedistill
trains clients one by one, and stacked (`runtime.fast`). Rounds take turns in one process, and what counts is
its processor time. Each side is warm, and nothing is evaluated. ``largest difference`` is that of weights of
the server after all rounds, exact and fast.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep
from torch import Tensor, nn
from torch.nn import functional as F

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_sampling import sample_clients
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run

RESULTS = Path(__file__).parent / "results" / "small_clients.json"
BATCH, LR, MOMENTUM = 32, 0.05, 0.9
WORKLOADS: dict[str, dict[str, Any]] = {
    "W4": {"clients": 200, "limit": 20_000, "fraction": 1.0},
    "W5": {"clients": 10_000, "limit": 60_000, "fraction": 0.02},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--repeats", type=int, default=9, help="counted rounds of each side")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in [arguments.only] if arguments.only else [*WORKLOADS]:
        found = measure(name, arguments.repeats)
        print(f"{name}: {found}", flush=True)
        keep(RESULTS, name, "now", found)


def measure(name: str, repeats: int) -> dict[str, Any]:
    experiments = {
        side: parse(experiment_of(WORKLOADS[name], repeats + 1, fast), name)
        for side, fast in (("exact", False), ("fast", True))
    }
    task, (arm,) = prepare(experiments["exact"])
    plain = Plain(arm)
    runs = {side: start_run(arm) for side in experiments}
    executors = {side: SerialExecutor(one, task) for side, one in experiments.items()}
    seconds: dict[str, list[float]] = {side: [] for side in ("plain", *experiments)}
    for number in range(1, repeats + 2):
        clients = sample_clients(arm.sampling, len(task.clients), arm.seed, number)
        for side in seconds:
            before = time.process_time()
            if side == "plain":
                plain.round(clients)
            else:
                play_round(runs[side], arm, executors[side])
            seconds[side].append(time.process_time() - before)
    weights = [run.server.model.weights for run in runs.values()]
    medians = {side: statistics.median(each[1:]) for side, each in seconds.items()}
    return {
        "command": f"python benchmarks/small_clients.py --only {name} --repeats {repeats}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
        "medians": medians,
        "ratios": {side: medians[side] / medians["plain"] for side in runs},
        "fast to exact": medians["fast"] / medians["exact"],
        "stacked": runs["fast"].records[-1].stacked,
        "largest difference": float((weights[0] - weights[1]).abs().max()),
    }


def experiment_of(workload: dict[str, Any], rounds: int, fast: bool) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "task": {"name": "fashion-mnist", "clients": workload["clients"], "limit": workload["limit"]},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {
            "epochs": 1,
            "batch_size": BATCH,
            "optimizer": {"name": "sgd", "lr": LR, "momentum": MOMENTUM},
        },
        "sampling": {"fraction": workload["fraction"]},
        "evaluate": {"every": rounds + 1},
        "runtime": {"kind": "serial", "fast": fast},
        "arms": [{"method": "fedavg"}],
    }


class Plain:
    """What one writes without a framework."""

    def __init__(self, arm: ReadyArm) -> None:
        self.clients = [(data.samples.float() / 127.5 - 1, data.labels) for data in arm.task.clients]
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
        self.average = clone(self.model.state_dict())

    def round(self, clients: list[int]) -> None:
        total: dict[str, Tensor] = {}
        for client in clients:
            self.model.load_state_dict(self.average)
            images, labels = self.clients[client]
            optimizer = torch.optim.SGD(self.model.parameters(), LR, momentum=MOMENTUM)
            for at in torch.randperm(len(images)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(self.model(images[at]), labels[at]).backward()
                optimizer.step()
            for name, value in clone(self.model.state_dict()).items():
                total[name] = total[name] + value if name in total else value
        self.average = {name: value / len(clients) for name, value in total.items()}


def clone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


if __name__ == "__main__":
    main()
