"""What does an accuracy cost? `bridge`, tuned rivals, statistics and controls on several tasks.

    FEDISTILL_DATA=FOLDER python benchmarks/flagship.py [--tasks NAME ...] [--seeds 0 1 2] [--arms NAME ...]
        [--again] [--runs FOLDER] [--validation]
    FEDISTILL_DATA=FOLDER python benchmarks/flagship.py --tune KIND ... [--runs FOLDER]

Each task, seed and arm is a run of its own in ``--runs``: what is finished is kept, what was stopped
is resumed. Results are gathered in results/flagship.json, of which `python docs/generate.py` makes
docs/flagship.md. Bytes are those of all frames, both directions and all clients, set-up included; public data
are kept beside them, and what a client computes: multiply-adds, the mean over clients, and memory.
``--again`` leaves out what is not in the tables: most parts of `bridge` have one seed, or one task.
``--validation`` measures on a part of the training set instead, and keeps nothing in results/.

Arms have the settings in results/flagship-KIND.toml, which ``--tune`` makes of flagship-KIND.toml: the same
number of trials for each, on one task and seed of its kind. They are carried over to the other tasks.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fedistill
from fedistill.config.units import format_bytes
from fedistill.experiment.results import ArmJson

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "flagship.json"
VIEW = "server@global"
ROUNDS = 15
TRIALS, TRIAL_ROUNDS = 12, 8
KINDS = {"images": 0.82, "published": 0.82, "texts": 0.92}
"""What is tuned together, and the accuracy that should cost as few bytes as possible."""


def images(clients: int, partition: str, name: str = "fashion-mnist") -> dict[str, Any]:
    return {"name": name, "limit": 10_000, "public": 2_000, "clients": clients, "partition": partition}


SKEWED = "dirichlet(alpha=0.3)"
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "fashion-10": ("images", images(10, SKEWED)),
    "fashion-10-strong": ("images", images(10, "dirichlet(alpha=0.1)")),
    "fashion-10-two-classes": ("images", images(10, "pathological(classes_per_client=2)")),
    "fashion-50": ("images", images(50, SKEWED)),
    "fashion-10-a-third": ("images", images(10, SKEWED)),
    "mnist-10": ("images", images(10, SKEWED, "mnist")),
    "digits-10": ("images", {"name": "digits", "clients": 10, "partition": SKEWED, "public": 400}),
    "bbc-5": (
        "texts",
        {
            "name": "bbc-news",
            "public": 500,
            "clients": 5,
            "partition": "dirichlet(alpha=0.5)",
            "text": {"length": 256, "vocabulary": 4000},
        },
    ),
}
SAMPLING = {"fashion-10-a-third": {"sampling": {"fraction": 0.34}}}
"""What a task changes in the experiment beside the task."""

PARTS: dict[str, dict[str, Any]] = {
    "bridge-all-vote": {"coverage": 1.0},
    "bridge-equal-votes": {"weighting": "equal", "coverage": 1.0},
    "bridge-5-epochs": {"vote_epochs": 5},
    "bridge-no-retention": {"retain": 0.0},
    "bridge-500": {"samples": 500},
    "bridge-1400": {"samples": 1400},
    "bridge-at-once": {"levels_first": False},
    "bridge-500-at-once": {"levels_first": False, "samples": 500},
    "bridge-refined": {"refine_labels": True},
    "bridge-at-once-refined": {"levels_first": False, "refine_labels": True},
    "bridge-1400-at-once-refined": {"levels_first": False, "refine_labels": True, "samples": 1400},
    "bridge-500-at-once-refined": {"levels_first": False, "refine_labels": True, "samples": 500},
    "bridge-long-at-once-refined": {"levels_first": False, "refine_labels": True},
    "bridge-statistics": {"start": "gaussian(width=32)"},
    "bridge-statistics-long": {"start": "gaussian(width=32)"},
    "bridge-long": {},
    "bridge-long-at-once": {"levels_first": False},
    "bridge-long-ema": {"ema": 0.7},
    "bridge-larger": {"models": {"clients": ["cnn-s"], "server": "cnn-m"}},
    "bridge-unlike": {"models": {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"}},
}
"""`bridge` as it was tuned, but for one thing."""
TEXT_PARTS = ("bridge-refined", "voting-longer", "voting-longer-refined")
LONG = {name: 40 for name in (*PARTS, "random-mask-long") if "-long" in name}
"""Arms with more rounds than the others, since theirs cost a tenth."""
LONGER = 5
"""Rounds of votes by clients who train for 40 epochs, which take long; most get little better in the last."""
CONTROLS: dict[str, dict[str, Any]] = {
    "local": {"method": "local"},
    "server-alone": {
        "method": "server-alone",
        "models": {"clients": ["cnn-s"], "server": "cnn-m"},
        "train": {"epochs": 1, "loss": "cross-entropy"},
    },
    "gaussian-32": {"method": "gaussian", "name": "gaussian-32", "width": 32},
}
"""Arms for images that are not tuned: controls, and the cheapest statistics."""
TEXT_CONTROLS: dict[str, dict[str, Any]] = {
    "local": {"method": "local"},
    "server-alone": {"method": "server-alone", "train": {"loss": "cross-entropy"}},
}
TARGETS = (0.70, 0.75, 0.78, 0.80, 0.82, 0.84, 0.86)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="by default, all of the task's kind")
    parser.add_argument(
        "--again", action="store_true", help="only the arms that results/ has of a task and seed"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs") / "flagship")
    parser.add_argument("--validation", action="store_true", help="measure on training data set apart")
    parser.add_argument("--tune", nargs="+", choices=KINDS, metavar="KIND", help="choose settings, and stop")
    arguments = parser.parse_args()
    for kind in arguments.tune or ():
        tune(kind, arguments.runs)
    if arguments.tune:
        return
    kept = read_results()
    for seed in arguments.seeds:
        for task in arguments.tasks:
            known = arms_of(TASKS[task][0])
            again = [name for name, seeds in kept.get(task, {}).items() if str(seed) in seeds]
            for name in arguments.arms or (again if arguments.again else known):
                if name not in known:
                    parser.error(f"--arms {name}: {task} has {', '.join(known)}")
                arm = measure(task, seed, name, arguments.runs, arguments.validation)
                print(task, seed, line(name, arm), flush=True)
                if not arguments.validation:
                    keep(task, seed, name, arm, known[name])


def tune(kind: str, runs: Path) -> None:
    """Tune all arms of a kind with the same budget, and keep the experiment file that comes of it."""
    out = runs / f"tuning-{kind}"
    budget = ["--trials", str(TRIALS), "--rounds", str(TRIAL_ROUNDS), "--target", str(KINDS[kind])]
    # With a relative path, since the tuned file names the command.
    command = [str(Path(sys.executable).with_name("fedistill")), "tune", f"flagship-{kind}.toml", *budget]
    subprocess.run([*command, "--out", os.path.relpath(out, HERE)], cwd=HERE, check=True)
    shutil.copy(out / "tuned.toml", tuned(kind))


def tuned(kind: str) -> Path:
    return HERE / "results" / f"flagship-{kind}.toml"


@cache
def experiment(kind: str) -> dict[str, Any]:
    return tomllib.loads(tuned(kind).read_text(encoding="utf-8"))


def arms_of(kind: str) -> dict[str, dict[str, Any]]:
    """Return the arms of a kind of tasks by name: as they were tuned, then others."""
    arms = {arm.get("name", arm["method"]): arm for arm in experiment(kind)["arms"]}
    parts = {name: {**arms["bridge"], "name": name, **part} for name, part in PARTS.items()}
    parts["random-mask-long"] = {**arms["random-mask"], "name": "random-mask-long"}
    parts |= {f"{name}-not-true": _not_true(arms[name]) for name in ("fedavg-qsgd", "random-mask")}
    if "voting-1000" in arms:
        for samples in (500, 1000, 1400):
            parts |= _votes_alone(arms["voting-1000"], samples)
    else:
        parts |= _votes_alone(arms["voting"], None)
    if kind == "images":
        published = {arm["method"]: arm for arm in experiment("published")["arms"]}
        return arms | parts | CONTROLS | published
    return arms | {name: parts[name] for name in TEXT_PARTS} | TEXT_CONTROLS


def _votes_alone(tuned: dict[str, Any], samples: int | None) -> dict[str, dict[str, Any]]:
    """Return arms that vote on so many images: as tuned; with the epochs that `bridge` has; and refined."""
    name = "voting" if samples is None else f"voting-{samples}"
    train = {**tuned.get("train", {}), "epochs": 40}
    arm = {**tuned, "name": name} | ({} if samples is None else {"samples": samples})
    longer = {**arm, "name": f"{name}-longer", "train": train, "distill_epochs": 30}
    refined = {**longer, "name": f"{name}-longer-refined", "aggregation": "majority", "refine_labels": True}
    return {one["name"]: one for one in (arm, longer, refined)}


def _not_true(arm: dict[str, Any]) -> dict[str, Any]:
    """Return an arm whose clients keep what the common model says of classes that a sample is not of.

    What `retain` is for `bridge`, without public data (FedNTD).
    """
    train = {**arm.get("train", {}), "loss": "cross-entropy", "not_true": {}}
    return {**arm, "name": f"{arm.get('name', arm['method'])}-not-true", "train": train}


def rounds_of(name: str) -> int:
    return LONGER if "-longer" in name else LONG.get(name, ROUNDS)


def measure(task: str, seed: int, name: str, runs: Path, validation: bool) -> ArmJson:
    """Run an arm, or what is left of it, and return its part of results.json."""
    kind, setting = TASKS[task]
    asked = dict(setting)
    if validation:
        train = Path(os.environ["FEDISTILL_DATA"]) / f"{asked.pop('name')}-train.parquet"
        if not train.exists():
            raise SystemExit(
                f"--validation: {task} has no file of training data, {train}: name other --tasks"
            )
        asked |= {"format": "parquet", "train": str(train), "test_share": 0.05}
    raw = {
        **experiment(kind),
        **SAMPLING.get(task, {}),
        "seed": seed,
        "rounds": rounds_of(name),
        "evaluate": {"clients": rounds_of(name)},  # one figure of clients' models is enough
        "task": asked,
        "arms": [arms_of(kind)[name]],
    }
    out = runs / f"{task}-{seed}-{name}{'-validation' if validation else ''}"
    asked_for = out.with_suffix(".json")
    if not asked_for.exists() and not out.exists():
        runs.mkdir(parents=True, exist_ok=True)
        asked_for.write_text(json.dumps(raw))
    elif not asked_for.exists() or json.loads(asked_for.read_text()) != raw:
        raise SystemExit(
            f"{out} was begun with other settings, as {asked_for} says: remove both to run again"
        )
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


def read_results() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the rows that are kept, by task, arm and seed."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def keep(task: str, seed: int, name: str, arm: ArmJson, settings: dict[str, Any]) -> None:
    kept = read_results()
    kept.setdefault(task, {}).setdefault(name, {})[str(seed)] = {
        "curve": curve(arm),
        "clients": arm["rounds"][-1]["views"].get("client@global") if arm["rounds"] else None,
        "public": arm["bytes_public"],
        "multiply_adds": arm["multiply_adds"] // TASKS[task][1]["clients"],
        "memory": arm["memory"],
        "status": arm["status"],
        "arm": settings,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(kept, indent=None, separators=(",", ":")) + "\n")


def _bytes(sent: int | None) -> str:
    return "-" if sent is None else format_bytes(sent)


if __name__ == "__main__":
    main()
