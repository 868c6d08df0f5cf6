"""What does an accuracy cost? `bridge`, rivals and controls on several tasks, with three seeds each.

    FEDISTILL_DATA=FOLDER python benchmarks/flagship.py [--tasks NAME ...] [--seeds 0 1 2] [--arms NAME ...]
        [--runs FOLDER] [--validation]

Each task, seed and arm is a run of its own in ``--runs``: what is finished is kept, what was stopped
is resumed. Results are gathered in results/flagship.json, of which `python docs/generate.py` makes
docs/flagship.md. Bytes are those of all frames, both directions and all clients, set-up included, without
public data. ``--validation`` measures on a part of the training set instead, and is for choosing settings: it
keeps nothing in results/.

Arms have the settings that were best among those tried for Fashion-MNIST with 10 clients (docs/flagship.md);
they are carried over to the other image tasks.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import fedistill
from fedistill.config.units import format_bytes
from fedistill.experiment.results import ArmJson

RESULTS = Path(__file__).parent / "results" / "flagship.json"
VIEW = "server@global"
ROUNDS = 15


def images(clients: int, partition: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"limit": 10_000, "public": 2_000, "clients": clients, "partition": partition, **more}


SKEWED = {"kind": "dirichlet", "alpha": 0.3}
TASKS: dict[str, dict[str, Any]] = {
    "fashion-10": images(10, SKEWED, name="fashion-mnist"),
    "fashion-10-strong": images(10, {"kind": "dirichlet", "alpha": 0.1}, name="fashion-mnist"),
    "fashion-10-two-classes": images(
        10, {"kind": "pathological", "classes_per_client": 2}, name="fashion-mnist"
    ),
    "fashion-50": images(50, SKEWED, name="fashion-mnist"),
    "mnist-10": images(10, SKEWED, name="mnist"),
}
SMALL = {"clients": ["cnn-s"], "server": "cnn-s"}
LARGER = {"clients": ["cnn-s"], "server": "cnn-m"}
UNLIKE = {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"}


def trained(epochs: int, balanced: bool = True) -> dict[str, Any]:
    return {"epochs": epochs, "loss": "balanced-softmax" if balanced else "cross-entropy"}


ARMS: dict[str, dict[str, Any]] = {
    "local": {"method": "local", "models": SMALL, "train": trained(5)},
    "server-alone": {"method": "server-alone", "models": LARGER},
    "fedavg-qsgd-3": {
        "method": "fedavg",
        "codec": "qsgd(levels=1)",
        "models": SMALL,
        "train": trained(3, balanced=False),
    },
    "fedavg-qsgd-8": {
        "method": "fedavg",
        "codec": "qsgd(levels=1)",
        "models": SMALL,
        "train": trained(8, balanced=False),
    },
    "fedavg-stc-2": {
        "method": "fedavg",
        "codec": "stc(share=0.02)",
        "models": SMALL,
        "train": trained(5),
    },
    "fedavg-stc-5": {
        "method": "fedavg",
        "codec": "stc(share=0.05)",
        "models": SMALL,
        "train": trained(5),
    },
    "voting": {
        "method": "voting",
        "aggregation": "prior-corrected",
        "distill_epochs": 3,
        "models": LARGER,
        "train": trained(5),
    },
    "bridge": {"method": "bridge", "codec": "stc(share=0.02)", "models": SMALL, "train": trained(5)},
    "bridge-dense": {"method": "bridge", "codec": "stc(share=0.05)", "models": SMALL, "train": trained(10)},
    "bridge-larger": {"method": "bridge", "codec": "stc(share=0.02)", "models": LARGER, "train": trained(5)},
    "bridge-unlike": {"method": "bridge", "codec": "stc(share=0.02)", "models": UNLIKE, "train": trained(5)},
    "bridge-all-vote": {
        "method": "bridge",
        "codec": "stc(share=0.02)",
        "coverage": 1.0,
        "models": SMALL,
        "train": trained(5),
    },
    "bridge-equal-votes": {
        "method": "bridge",
        "codec": "stc(share=0.02)",
        "weighting": "equal",
        "coverage": 1.0,
        "models": SMALL,
        "train": trained(5),
    },
    "bridge-5-epochs": {
        "method": "bridge",
        "codec": "stc(share=0.02)",
        "vote_epochs": 5,
        "models": SMALL,
        "train": trained(5),
    },
}
TARGETS = (0.70, 0.75, 0.78, 0.80, 0.82, 0.84, 0.86)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "flagship")
    parser.add_argument("--validation", action="store_true", help="measure on training data set apart")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for task in arguments.tasks:
            for name in arguments.arms:
                arm = measure(task, seed, name, arguments.runs, arguments.validation)
                print(task, seed, line(name, arm), flush=True)
                if not arguments.validation:
                    keep(task, seed, name, arm)


def measure(task: str, seed: int, name: str, runs: Path, validation: bool) -> ArmJson:
    """Run an arm, or what is left of it, and return its part of results.json."""
    asked = dict(TASKS[task])
    if validation:
        data = Path(os.environ["FEDISTILL_DATA"])
        train = data / f"{asked.pop('name')}-train.parquet"
        asked |= {"format": "parquet", "train": str(train), "test_share": 0.05}
    raw = {
        "seed": seed,
        "rounds": ROUNDS,
        "task": asked,
        "models": LARGER,
        "train": {"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9}},
        "arms": [{"name": name, **ARMS[name]}],
    }
    out = runs / f"{task}-{seed}-{name}{'-validation' if validation else ''}"
    if not (out / "experiment.toml").exists():
        run = fedistill.compare(fedistill.parse(raw, "flagship"), out)
    elif not (out / "results.json").exists() or fedistill.Run(out)[name].status == "stopped":
        run = fedistill.resume(out)
    else:
        run = fedistill.Run(out)
    (arm,) = run.results["arms"]
    return arm


def curve(arm: ArmJson) -> list[tuple[int, float]]:
    """Return all bytes so far, without public data, and the accuracy of the server's model, by round."""
    sent, found = arm["bytes_setup"], []
    for entry in arm["rounds"]:
        sent += entry["bytes_up"] + entry["bytes_down"]
        view = entry["views"].get(VIEW)
        if view is not None:
            found.append((sent, round(view, 4)))
    return found


def line(name: str, arm: ArmJson) -> str:
    found = curve(arm)
    if not found:
        return f"{name}: no server model"
    reached = ", ".join(f"{target:.0%} {_bytes(cost(found, target))}" for target in TARGETS)
    return f"{name}: {reached}; last {found[-1][1]:.1%}, {format_bytes(found[-1][0])}"


def cost(points: list[Any], accuracy: float) -> int | None:
    """Return the bytes when the accuracy is first reached, or None."""
    return next((sent for sent, reached in points if reached >= accuracy), None)


def keep(task: str, seed: int, name: str, arm: ArmJson) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept.setdefault(task, {}).setdefault(name, {})[str(seed)] = {
        "curve": curve(arm),
        "public": arm["bytes_public"],
        "status": arm["status"],
        "arm": ARMS[name],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(kept, indent=None, separators=(",", ":")) + "\n")


def _bytes(sent: int | None) -> str:
    return "-" if sent is None else format_bytes(sent)


if __name__ == "__main__":
    main()
