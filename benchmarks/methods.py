"""Every method on images and on text, each tuned by the same number of trials.

    python benchmarks/methods.py [--tasks digits bbc-news] [--methods NAME ...] [--seed 0] [--runs FOLDER]

Each row is tuned first, as `fedistill tune` does: BUDGET trials of so many rounds on a validation part of the
training set, of local epochs, learning rate, loss, pooling, and what else its method and codec have; the test
set is not read. Its best settings are then run once for all rounds. The trials stay in ``--runs``: what was
stopped goes on.

Codecs are the methods' own; VARIANTS are further rows. Clients have unlike models where
the method allows it: of any features, else of features of one length, else all have one model. Where the
server's model travels, it is the small one, and the clients' are larger. A method that is for images or for
texts alone has rows of those alone. One seed; on another processor it ends a point or two away, and
a larger model at the server up to nine. Rows of other methods stay as they are.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any, Literal

import torch
from tuning import settings_of, tune_alone, tuning_of, with_settings

from fedistill import parse
from fedistill.errors import Refusal
from fedistill.experiment.runner import prepare
from fedistill.experiment.summary import arm_json
from fedistill.federation import local_executor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.registry import METHODS
from fedistill.studies.tune import Plan

RESULTS = Path(__file__).parent / "results" / "methods.json"
TASKS: dict[str, dict[str, Any]] = {
    "digits": {
        "rounds": 10,
        "task": {
            "name": "digits",
            "clients": 5,
            "partition": {"kind": "dirichlet", "alpha": 0.3},
            "public": 500,
        },
        "train": {
            "epochs": 2,
            "batch_size": 16,
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        },
    },
    "bbc-news": {
        "rounds": 8,
        "task": {
            "name": "bbc-news",
            "clients": 5,
            "partition": {"kind": "dirichlet", "alpha": 0.5},
            "public": 500,
            "text": {"length": 64, "vocabulary": 4000},
        },
        "train": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.003}},
    },
}
KINDS: dict[str, Literal["image", "text"]] = {"digits": "image", "bbc-news": "text"}
BUDGET = {"digits": (12, 8), "bbc-news": (8, 4)}
"""Trials of each row, and the rounds of each."""
MODELS: dict[str, list[dict[str, Any]]] = {
    "digits": [
        {"clients": ["cnn-s", "mlp-s"], "server": "cnn-m"},
        {"clients": ["cnn-s", "cnn-m"], "server": "cnn-s"},
        {"clients": ["cnn-s"], "server": "cnn-s"},
    ],
    "bbc-news": [
        {"clients": ["bag", "textcnn"], "server": "textcnn@96"},
        {"clients": ["bag@96", "textcnn@96"], "server": "textcnn@96"},
        {"clients": ["textcnn"], "server": "textcnn"},
    ],
}
SMALL_TRAVELS = {
    "digits": {"clients": ["cnn-m", "mlp-s"], "server": "cnn-s"},
    "bbc-news": {"clients": ["textcnn", "textcnn@96"], "server": "bag"},
}
# Its defaults are meant for public sets of thousands and for hundreds of rounds: here a round would teach two
# batches, and labels of round 1 would stay to the end.
SETTINGS = {"scarlet": {"samples": 250, "duration": 3}}
VARIANTS: dict[str, dict[str, Any]] = {"fedgen": {"fedgen-predictor": {"share": "predictor"}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "methods")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        for method in arguments.methods:
            if not METHODS[method].needs.takes(KINDS[task]):
                continue
            for wanted in arms(method):
                row = measure(task, wanted, arguments.seed, arguments.runs)
                print(task, wanted["name"], row["settings"], row["curve"], row["views"], flush=True)
                keep(task, wanted["name"], row)


def arms(method: str) -> list[dict[str, Any]]:
    arm = {"name": method, "method": method, **SETTINGS.get(method, {})}
    return [arm, *({**arm, "name": name, **given} for name, given in VARIANTS.get(method, {}).items())]


def measure(task: str, wanted: dict[str, Any], seed: int, runs: Path) -> dict[str, Any]:
    """Tune an arm, and run it with its best settings."""
    raw = {"seed": seed, **TASKS[task], "models": models(task, wanted), "arms": [wanted]}
    experiment = parse(raw, "methods")
    command = f"python benchmarks/methods.py --tasks {task} --methods {wanted['method']} --seed {seed}"
    folder = runs / f"{task}-{seed}-{wanted['name']}"
    tuned = tune_alone(experiment, Plan(*BUDGET[task]), folder, command, KINDS[task])
    serial = experiment.runtime.model_copy(update={"kind": "serial"})
    experiment = with_settings(experiment, tuned, KINDS[task]).model_copy(update={"runtime": serial})
    data, (arm,) = prepare(experiment)
    started, run = time.perf_counter(), start_run(arm)
    with local_executor.start_executor(experiment, data) as executor:
        while run.round < arm.rounds:
            play_round(run, arm, executor)
    outcome = arm_json(arm, run, "done", None)
    views = [record.views for record in run.records]
    main_view = "server@global" if "server@global" in views[-1] else "client@global"
    return {
        "arm": wanted,
        "settings": settings_of(tuned),
        "tuning": tuning_of(tuned),
        "models": raw["models"],
        "server_model": outcome["server_model"],
        "codec": outcome["codec"],
        "parameters": outcome["parameters"],
        "views": {view: round(value, 4) for view, value in views[-1].items()},
        "curve": [round(found[main_view], 3) for found in views],
        "bytes_up": sum(found["bytes_up"] for found in outcome["rounds"]),
        "bytes_down": sum(found["bytes_down"] for found in outcome["rounds"]),
        "bytes_setup": outcome["bytes_setup"],
        "bytes_public": outcome["bytes_public"],
        "seconds": round(time.perf_counter() - started),
        "rounds": arm.rounds,
        "seed": seed,
        "setting": {key: raw[key] for key in ("task", "train")},
        "command": command,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def models(task: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """The first choice of models that the method does not refuse."""
    method = wanted["method"]
    if METHODS[method].travels == "server":
        return SMALL_TRAVELS[task]
    for choice in MODELS[task]:
        experiment = parse({**TASKS[task], "models": choice, "arms": [wanted]}, "methods")
        _, (arm,) = prepare(experiment)
        try:
            arm.method.check(arm.federation)
        except Refusal:
            continue
        return choice
    raise SystemExit(f"{method} refuses all models of {task}: add a choice to MODELS")


def keep(task: str, name: str, row: dict[str, Any]) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = {**kept.get(task, {}), name: row}
    order = [arm["name"] for method in METHODS for arm in arms(method)]
    kept[task] = {name: rows[name] for name in order if name in rows}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
