"""What does a server that keeps all messages learn of its clients, by what the method sends?

    python benchmarks/audit.py [--seeds 1] [--runs FOLDER] [--short]
    python benchmarks/audit.py --swapped

Digits, eight clients, Dirichlet 0.5, eight rounds, and BBC news for word counts: `fedistill compare`, then
`fedistill audit` of the run, arm by arm. Seed 0 was used while the attacks were written, and is not among
those reported. What is kept already is not run again, unless ``--out`` names another file. `python
docs/generate.py` makes the tables of docs/audit.md of what is kept. ``--short`` is a toy of the same shape.

``--swapped`` prints a control: after the first round of `fedmd`, clients are asked about the members of
another client, of whom they cannot have heard; the area should be 0.5.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from kept import keep

from fedistill import compare, parse
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.runner import prepare
from fedistill.federation.history import RoundRecord
from fedistill.federation.local_executor import SerialExecutor
from fedistill.rng import numpy_stream
from fedistill.studies.audit.arm_evidence import ArmEvidence, Settings
from fedistill.studies.audit.audit import audit
from fedistill.studies.audit.client_audit import audit_client
from fedistill.studies.audit.replay import replay
from fedistill.studies.audit.roc import Scored, roc

RESULTS = Path(__file__).parent / "results" / "audit.json"
COMMAND = "python benchmarks/audit.py"
DIGITS: dict[str, Any] = {
    "rounds": 8,
    "task": {
        "name": "digits",
        "clients": 8,
        "public": 300,
        "test_share": 0.4,
        "partition": {"kind": "dirichlet", "alpha": 0.5, "min_samples": 10},
    },
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "train": {"epochs": 3, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
    "runtime": {"kind": "serial"},
    "arms": [
        {"method": "fedavg"},
        {"method": "fedavg", "name": "fedavg-15-epochs", "train": {"epochs": 15}},
        {"method": "dsfl"},
        {"method": "voting"},
        {"method": "fedmd"},
        {"method": "bridge"},
        {"method": "fd"},
        {"method": "fedproto"},
        {"method": "gaussian"},
    ],
}
BBC: dict[str, Any] = {
    "rounds": 1,
    "task": {
        "name": "bbc-news",
        "clients": 8,
        "limit": 800,
        "public": 100,
        "test_share": 0.4,
        "partition": {"kind": "dirichlet", "alpha": 0.5, "min_samples": 10},
    },
    "models": {"clients": ["bag"], "server": "bag"},
    "runtime": {"kind": "serial"},
    "arms": [{"method": "naive-bayes"}, {"method": "naive-bayes", "name": "naive-bayes-least-2", "least": 2}],
}
SHORT: dict[str, Any] = {
    **DIGITS,
    "rounds": 2,
    "task": {**DIGITS["task"], "clients": 3, "limit": 90, "public": 40},
    "arms": [{"method": "fedavg"}, {"method": "voting"}, {"method": "gaussian"}],
}


class Told:
    """Says how it goes on."""

    def replayed(self, arm: str, record: RoundRecord, rounds: int) -> None:
        if record.round == rounds:
            print(f"{arm}: replayed", flush=True)

    def audited(self, arm: str, client: int, done: int, clients: int) -> None:
        print(f"{arm}: client {client} ({done} of {clients})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=Path, help="keep the runs here; default: a temporary folder")
    parser.add_argument("--short", action="store_true", help="a toy of the same shape, for tests")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of the rows")
    parser.add_argument("--swapped", action="store_true", help="print the control")
    given = parser.parse_args()
    if given.swapped:
        swapped(given.seeds[0])
        return
    chosen = {"short": SHORT} if given.short else {"digits": DIGITS, "bbc-news": BBC}
    settings = Settings(shadows=2, rounds=1) if given.short else Settings()
    with tempfile.TemporaryDirectory() as temporary:
        for name, raw in chosen.items():
            for seed in given.seeds:
                measure(name, raw, seed, settings, given.runs or Path(temporary), given.out)


def measure(name: str, raw: dict[str, Any], seed: int, settings: Settings, runs: Path, out: Path) -> None:
    """Run and audit the arms that are not kept yet, and keep a row for each."""
    setting = f"{name}, seed {seed}"
    kept = json.loads(out.read_text()).get(setting, {}) if out.exists() else {}
    arms = [arm for arm in raw["arms"] if arm.get("name", arm["method"]) not in kept]
    if not arms:
        return
    for arm in arms:
        title = arm.get("name", arm["method"])
        folder = runs / f"{name}-{seed}-{title}"
        if not (folder / "results.json").exists():
            compare(parse({**raw, "seed": seed, "arms": [arm]}, "audit"), folder, quiet=True)
        found = audit(folder, settings, [], COMMAND, Told())
        run = json.loads((folder / "results.json").read_text())["arms"][0]
        row = {
            **found["arms"][0],
            "views": run["rounds"][-1]["views"],
            "bytes_up": sum(one["bytes_up"] for one in run["rounds"]),
            "settings": found["settings"],
            "versions": found["versions"],
        }
        for attack in row["membership"]:
            del attack["points"]
        keep(out, setting, title, row)


def swapped(seed: int) -> None:
    """Print the areas of a run of one round, for each client's own members, and for another client's."""
    with tempfile.TemporaryDirectory() as temporary:
        raw = {**DIGITS, "seed": seed, "rounds": 1, "arms": [{"method": "fedmd"}]}
        compare(parse(raw, "audit"), temporary, quiet=True)
        folder = RunFolder.open(Path(temporary))
        experiment = folder.experiment()
        task, (arm,) = prepare(experiment)
        clients = range(len(task.clients))
        with SerialExecutor(experiment, task) as executor:
            result: Any = read_results(folder.path)["arms"][0]
            evidence = ArmEvidence(replay(folder, arm, result, executor, clients, 1), Settings())
    for shift in (0, 1):
        found = [audit_client(evidence, one, (one + shift) % len(clients)).scored for one in clients]
        for attack in found[0]:
            area = roc(Scored.join([one[attack] for one in found]), numpy_stream(0, "audit ranges")).auc
            whose = "another client's" if shift else "own"
            print(
                f"{whose} members, {', '.join(attack)}: {area.value:.2f} ({area.low:.2f} to {area.high:.2f})"
            )


if __name__ == "__main__":
    main()
