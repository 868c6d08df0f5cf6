"""FedAvg and FedProx on MNIST and Fashion-MNIST as in NIID-bench (Li et al., 2022, arXiv 2102.02079).

    python benchmarks/published/niid_bench.py [--method fedprox] [--mu 0.001] [--task mnist] [--rounds 10]
        [--rows iid dirichlet labels-1 labels-2 labels-3] [--seeds 0] [--keep FOLDER]

Setting: 10 clients, all take part, 10 local epochs, batch 64, SGD with lr 0.01, momentum 0.9, weight decay
1e-5, the LeNet beside this file; mu of FedProx is 0.01, or as asked, in a row of its own. The published
figures are those of Flower's reproduction after 50 rounds, best round on the test set, mean and deviation of
3 seeds, mu chosen among 0.001, 0.01, 0.1 and 1. Ours keep the last round, and the best beside it because the
published figure is a best one. Runs are kept in FOLDER: started again, they go on from their last whole
round, up to as many rounds as are then asked for. Needs the data ($FEDISTILL_DATA, for Fashion-MNIST also
Debian's dataset-fashion-mnist, or a network).
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

from kept import keep

PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"kind": "iid"},
    "dirichlet": {"kind": "dirichlet", "alpha": 0.5, "min_samples": 10},
    **{f"labels-{n}": {"kind": "pathological", "classes_per_client": n} for n in (1, 2, 3)},
}
METHODS = ("fedavg", "fedprox")
MU = 0.01
PUBLISHED: dict[str, dict[str, tuple[float, float | None]]] = {
    "fedavg/fashion-mnist": {
        "iid": (89.23, 0.45),
        "dirichlet": (88.09, 0.29),
        "labels-1": (28.39, 17.09),
        "labels-2": (78.10, 2.51),
        "labels-3": (82.43, 1.52),
    },
    "fedavg/mnist": {
        "iid": (99.09, None),
        "dirichlet": (98.89, None),
        "labels-1": (19.33, 11.82),
        "labels-2": (96.86, None),
        "labels-3": (97.86, 0.34),
    },
    "fedprox/fashion-mnist": {
        "iid": (89.42, 0.09),
        "dirichlet": (88.15, 0.42),
        "labels-1": (32.65, 6.68),
        "labels-2": (78.05, 0.99),
        "labels-3": (82.99, 0.48),
    },
    "fedprox/mnist": {
        "iid": (99.16, None),
        "dirichlet": (99.02, None),
        "labels-1": (51.79, 26.75),
        "labels-2": (96.85, None),
        "labels-3": (97.85, None),
    },
}
TASKS = ("fashion-mnist", "mnist")


def main() -> None:
    from fedistill import parse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, default="fedavg")
    parser.add_argument("--mu", type=float, default=MU, help="strength of FedProx's pull")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=PARTITIONS, default=list(PARTITIONS))
    parser.add_argument("--keep", type=Path, help="folder in which interrupted runs stay and go on")
    arguments = parser.parse_args()
    arm: dict[str, Any] = {"method": arguments.method}
    group, variant = f"{arguments.method}/{arguments.task}", ""
    if arguments.method == "fedprox":
        arm["mu"] = arguments.mu
        variant = "" if arguments.mu == MU else f"/mu-{arguments.mu:g}"
    with tempfile.TemporaryDirectory() as passing:
        for seed, row in itertools.product(arguments.seeds, arguments.rows):
            name = f"{group}/{row}{variant}"
            raw = setting(arm, arguments.task, PARTITIONS[row], arguments.rounds, seed)
            folder = (arguments.keep or Path(passing)) / f"{name.replace('/', '-')}-{seed}"
            result = play(parse(raw, name), folder, name)["arms"][0]
            curve = [round(100 * r["views"]["server@global"], 2) for r in result["rounds"]]
            found = {
                "curve": curve,
                "last": curve[-1],
                "best": max(curve),
                "rounds": len(curve),
                "bytes_total": result["bytes_total"],
                "seconds": round(sum(r["seconds"] for r in result["rounds"])),
            }
            chosen = f" --mu {arguments.mu:g}" if variant else ""
            asked = f"--method {arguments.method}{chosen} --task {arguments.task} --rounds {len(curve)}"
            keep(
                "niid-bench", name, seed, found, f"{asked} --rows {row} --seeds {seed}", PUBLISHED[group][row]
            )


def setting(
    arm: dict[str, Any], task: str, partition: dict[str, Any], rounds: int, seed: int
) -> dict[str, Any]:
    return {
        "seed": seed,
        "rounds": rounds,
        "task": {"name": task, "clients": 10, "partition": partition},
        "models": {"clients": ["lenet:lenet"], "server": "lenet:lenet"},
        "train": {
            "epochs": 10,
            "batch_size": 64,
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-5},
        },
        "arms": [arm],
    }


def play(experiment: Any, folder: Path, name: str) -> dict[str, Any]:
    """Run from the start, or go on from where an earlier run in the folder got to."""
    from fedistill.config.toml import load, to_toml
    from fedistill.experiment.runner import resume_experiment, run_experiment

    asked = folder / "experiment.toml"
    if not asked.exists():
        return run_experiment(experiment, folder, name, Lines(name))
    # Nothing in a round depends on how many are to follow. What was written has all defaults filled in.
    asked.write_text(to_toml(load(asked, [f"rounds={experiment.rounds}"])))
    return resume_experiment(folder, Lines(name))


class Lines:
    """Prints a line a round."""

    def __init__(self, row: str) -> None:
        self.row = row

    def findings(self, findings: Any) -> None:
        pass

    def arm(self, name: str, rounds: int, done: int) -> None:
        pass

    def round(self, name: str, record: Any) -> None:
        print(f"{self.row} round {record.round}: {record.views} in {record.seconds:.0f} s", flush=True)

    def failed(self, name: str, error: str) -> None:
        print(f"{self.row} failed: {error}")


if __name__ == "__main__":
    main()
