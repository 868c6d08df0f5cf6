"""Tunes the arms of examples/fashion-mnist.toml, three settings each, without a look at the test set.

    python benchmarks/tuning.py TRAIN.parquet [--arm NAME ...]

A twentieth of the training file is held out and stands for the test set; private and public images
come from the rest, as in the example. The best setting of an arm is that with the fewest bytes, public data
left out, when the server's model first reaches the target; where none does, the most accurate.
"""

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

import torch

from fedistill import parse
from fedistill.config.units import format_bytes
from fedistill.experiment.results import arm_json
from fedistill.experiment.runner import prepare
from fedistill.experiment.table import reached
from fedistill.federation import local_executor
from fedistill.federation.arm import start_run
from fedistill.federation.round import play_round

ROOT = Path(__file__).parent
EXAMPLE = ROOT.parent / "examples" / "fashion-mnist.toml"
RESULTS = ROOT / "results" / "tuning.json"
TARGET = 0.75
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "fedavg": [{"train": {"optimizer": {"lr": lr}}} for lr in (0.01, 0.02, 0.05)],
    "fedavg-qsgd": [{"codec": {"name": "qsgd", "levels": levels}} for levels in (1, 3, 15)],
    "fedavg-stc": [{"codec": {"name": "stc", "share": share}} for share in (0.01, 0.03, 0.1)],
    "fedavg-small": [
        {"codec": {"name": "qsgd", "levels": 1}},
        {"codec": {"name": "qsgd", "levels": 3}},
        {"codec": {"name": "stc", "share": 0.1}},
    ],
    "dsfl": [{"codec": codec} for codec in ("int8", {"name": "simplex", "bits": 4}, "onehot")],
    "cfd": [{"distill_epochs": epochs} for epochs in (1, 3, 5)],
    "scarlet": [{"codec": codec} for codec in ("int8", {"name": "simplex", "bits": 4}, "onehot")],
    "voting": [{"distill_epochs": epochs} for epochs in (1, 2, 3)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="Parquet file of Fashion-MNIST's training set")
    parser.add_argument("--arm", choices=CANDIDATES, action="append", help="one arm; may be repeated")
    arguments = parser.parse_args()
    example = tomllib.loads(EXAMPLE.read_text())
    task = {key: value for key, value in example["task"].items() if key != "name"}
    task |= {"format": "parquet", "train": str(arguments.train), "test_share": 0.05}
    arms = {arm.get("name", arm["method"]): arm for arm in example["arms"]}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.arm or CANDIDATES:
        tried = []
        for settings in CANDIDATES[name]:
            found = measure({**example, "task": task, "arms": [_merged(arms[name], settings)]})
            tried.append({"settings": settings, **found})
            print(name, json.dumps(tried[-1]), flush=True)
        best = min(tried, key=lambda one: (one["bytes"] is None, one["bytes"] or 0, -one["accuracy"]))
        print(name, "best:", json.dumps(best["settings"]), format_bytes(best["bytes"] or 0), flush=True)
        kept[name] = {"target": TARGET, "torch": torch.__version__, "tried": tried, "best": best["settings"]}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def measure(raw: dict[str, Any]) -> dict[str, Any]:
    """Last accuracy of the server's model on held-out training data, and the bytes to the target."""
    experiment = parse(raw, "tuning")
    data, (arm,) = prepare(experiment)
    run = start_run(arm)
    with local_executor.start_executor(experiment, data) as executor:
        while run.round < arm.rounds:
            play_round(run, arm, executor)
    described = arm_json(arm, run, "done", None)
    sent = reached(described, "server@global", TARGET)
    accuracy = described["rounds"][-1]["views"]["server@global"]
    return {"accuracy": accuracy, "bytes": None if sent is None else sent[0], "total": run.ledger.total}


def _merged(arm: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    both = {key: {**arm[key], **value} for key, value in settings.items() if isinstance(arm.get(key), dict)}
    return {**arm, **settings, **({} if "codec" in settings else both)}


if __name__ == "__main__":
    main()
