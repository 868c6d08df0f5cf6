"""Does a coarsely coded downlink keep up with clients that are away for many rounds?

    FEDISTILL_DATA=FOLDER python benchmarks/client_sampling.py [--seeds 0 1 2] [--arms NAME ...] [--model mlp]
        [--split validation]

MNIST, 100 clients with 600 images each (IID), of whom 10 take part in a round; FedAvg, one local epoch in
batches of 10 by SGD at 0.1 without momentum, 16 rounds. `mlp` is 784-200-200-10 with ReLU (199,210 weights)
as in McMahan et al., 2017; `cnn-s` is the built-in one. On ``--split validation``, a twentieth of the
training images stands for the test set, which is not read: settings are chosen there.

Accuracy is that of the server's model on all test images after each round. Bytes are those of frames.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep
from torch import nn

from fedistill import parse
from fedistill.errors import FedistillError
from fedistill.experiment.runner import prepare
from fedistill.federation import local_executor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.models.signature import Signature

RESULTS = Path(__file__).parent / "results" / "client_sampling.json"
ROUNDS = 16
MODELS = {"mlp": "client_sampling:mlp", "cnn-s": "cnn-s"}
ARMS: dict[str, Any] = {
    "fp32": "fp32",
    "qsgd-1": "qsgd(levels=1)",
    "qsgd-1 unbounded": "qsgd(levels=1,bound=1e9)",
    "qsgd-1 up": {"up": "qsgd(levels=1)", "down": "fp32"},
    "qsgd-1 down": {"up": "fp32", "down": "qsgd(levels=1)"},
    "qsgd-3": "qsgd(levels=3)",
    "qsgd-7": "qsgd(levels=7)",
    "dadaquant": "dadaquant",
    "sign": "sign",
    "stc": "stc(share=0.1)",
    "top-k": "top-k(share=0.05)",
    "low-rank": "low-rank",
}


def mlp(signature: Signature) -> nn.Module:
    """Two hidden layers of 200 ReLU units."""
    channels, height, width = signature.shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, signature.classes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name in arguments.arms:
            found = measure(name, seed, arguments.model, arguments.split)
            setting = f"{arguments.model}, {arguments.split}, seed {seed}"
            print(f"{setting}, {name}: {json.dumps(found)}", flush=True)
            keep(RESULTS, setting, name, found)


def measure(name: str, seed: int, model: str, split: str) -> dict[str, Any]:
    """Accuracy after each round, and bytes; an arm that ends early has its error."""
    task: dict[str, Any] = {"name": "mnist"}
    if split == "validation":
        train = Path(os.environ["FEDISTILL_DATA"]) / "mnist-train.parquet"
        task = {"format": "parquet", "train": str(train), "test_share": 0.05}
    models = {"clients": [MODELS[model]], "server": MODELS[model]}
    raw = {
        "seed": seed,
        "rounds": ROUNDS,
        "task": {**task, "clients": 100, "partition": {"kind": "iid"}},
        "models": models,
        "train": {"epochs": 1, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0}},
        "sampling": {"fraction": 0.1},
        "runtime": {"kind": "serial"},
        "arms": [{"name": name, "method": "fedavg", "codec": ARMS[name]}],
    }
    experiment = parse(raw, "client_sampling")
    data, (arm,) = prepare(experiment)
    run, started, error = start_run(arm), time.perf_counter(), None
    with local_executor.start_executor(experiment, data) as executor:
        try:
            while run.round < ROUNDS:
                play_round(run, arm, executor)
        except FedistillError as stopped:  # a result as well: the arm has diverged
            error = str(stopped)
    bytes_by_direction = {
        way: sum(entry.bytes for entry in run.ledger.entries if entry.direction == way)
        for way in ("up", "down")
    }
    return {
        "accuracy": [round(record.views["server@global"], 4) for record in run.records],
        "bytes_up": bytes_by_direction["up"],
        "bytes_down": bytes_by_direction["down"],
        "error": error,
        "codec": arm.config.codec,
        "seconds": round(time.perf_counter() - started),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
