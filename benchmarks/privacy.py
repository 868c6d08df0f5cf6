"""What does privacy cost in accuracy?

    python benchmarks/privacy.py [--seeds 0 1 2] [--rows dp-sgd votes] [--runs FOLDER]
    python benchmarks/privacy.py --short --out FILE --runs FOLDER

Digits. `dp-sgd`: 5 clients (Dirichlet 1), 10 rounds, methods that send weights, soft labels, votes or
nothing, at several budgets ε and without noise. `votes`: 20 clients with an even share each, who train for
long and vote or label once, with noise at the client or at a trusted server. Accuracy is the server's model
on the test set after the last round; of `local`, the mean of the clients' models.

Each arm, at each budget, is tuned first as `fedistill tune` does: TRIALS trials of all rounds on a validation
part of the training set, at seed TUNED_ON, which is not among those reported, of what VARY has. The trials
stay in ``--runs``; rows that are kept already are not run again. It takes some forty minutes on one core.
`python docs/generate.py` makes the tables of docs/privacy.md of what is kept. The short form is votes, with
noise and without, after SHORT_TRIALS trials.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep, kept_rows
from tuning import settings_of, tune_alone, tuning_of, with_settings

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.privacy_budget import spent_epsilons
from fedistill.studies.search_space import Values
from fedistill.studies.tune import Plan
from fedistill.testing.runs import finish

RESULTS = Path(__file__).parent / "results" / "privacy.json"
BUDGETS = (1.0, 3.0, 8.0)
METHODS = ("fedavg", "dsfl", "voting", "local")
TRIALS, SHORT_TRIALS, TUNED_ON = 16, 2, 100
SHORT = ("voting/none/", "voting/randomised-response/1")
VARY: dict[str, Values | None] = {
    "train.epochs": (1, 2, 4, 8),
    "train.batch_size": (16, 32, 64),
    "train.optimizer.lr": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
    "train.loss": None,
    "train.label_smoothing": None,
    "distill_epochs": (1, 3, 10, 20),
    "aggregation": None,
    "privacy.rate": (0.1, 0.3, 0.6),
    "privacy.clip": (0.3, 1.0, 3.0),
}
"""Where the arm has the setting. DP-SGD draws its own batches, and refuses losses that need class counts."""
AT_ONCE: dict[str, Values | None] = {**VARY, "train.epochs": (5, 10, 20, 40)}
"""For labels that are sent once."""
NOISY: dict[str, list[dict[str, Any]]] = {
    "voting": [
        *({"kind": "randomised-response", "each": each} for each in (1.0, 2.0, 4.0)),
        *({"kind": "noisy-votes", "noise": noise} for noise in (2.0, 5.0, 10.0)),
    ],
    "dsfl": [{"kind": "gaussian-labels", "noise": noise} for noise in (1.0, 2.0, 5.0)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=("dp-sgd", "votes"), default=["dp-sgd", "votes"])
    parser.add_argument("--short", action="store_true", help="votes with noise and without, seed 0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of the rows")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "privacy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds, chosen = ([0], ["votes"]) if given.short else (given.seeds, given.rows)
    trials = SHORT_TRIALS if given.short else TRIALS
    for seed in seeds:
        for rows in chosen:
            setting = f"{rows}, seed {seed}"
            for name, experiment in (_dp_sgd() if rows == "dp-sgd" else _votes()).items():
                if name in kept_rows(given.out, setting) or (given.short and name not in SHORT):
                    continue
                row = _measured(rows, name, experiment, seed, given.runs, trials)
                keep(given.out, setting, name, row)
                print(setting, name, row["settings"], f"{row['accuracy']:.3f}", row["epsilon"], flush=True)


def _experiment(
    rounds: int, clients: int, public: int, alpha: float, lr: float, epochs: int
) -> dict[str, Any]:
    partition = {"kind": "dirichlet", "alpha": alpha}
    return {
        "rounds": rounds,
        "task": {"name": "digits", "clients": clients, "public": public, "partition": partition},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"epochs": epochs, "optimizer": {"name": "sgd", "lr": lr}},
        "evaluate": {"every": rounds},
        "runtime": {"kind": "serial"},
    }


def _dp_sgd() -> dict[str, dict[str, Any]]:
    """Each method at each budget, and without noise."""
    found = {}
    for method in METHODS:
        for budget in BUDGETS:
            table = {"kind": "dp-sgd", "epsilon": budget, "rate": 0.3, "clip": 1.0}
            base = _experiment(10, clients=5, public=400, alpha=1.0, lr=1.0, epochs=1)
            found[f"{method}/{budget:g}"] = {**base, "arms": [{"method": method, "privacy": table}]}
        base = _experiment(10, clients=5, public=400, alpha=1.0, lr=0.2, epochs=1)
        found[f"{method}/none"] = {**base, "arms": [{"method": method}]}
    return found


def _votes() -> dict[str, dict[str, Any]]:
    """Each mechanism on labels, and the same methods without noise."""
    found = {}
    for method, tables in NOISY.items():
        arm = {"method": method, "distill_epochs": 20, "samples": 100}
        for table in (None, *tables):
            base = _experiment(1, clients=20, public=200, alpha=100.0, lr=0.1, epochs=20)
            name = "none/" if table is None else f"{table['kind']}/{table.get('each', table.get('noise')):g}"
            noisy = {} if table is None else {"privacy": table}
            found[f"{method}/{name}"] = {**base, "arms": [{**arm, **noisy}]}
    return found


def _measured(
    rows: str, name: str, raw: dict[str, Any], seed: int, runs: Path, trials: int
) -> dict[str, Any]:
    """Tune an arm, if that is not done yet, and run it with its best settings."""
    plan = Plan(trials, raw["rounds"], vary=_varied(raw["arms"][0], AT_ONCE if rows == "votes" else VARY))
    tuned_on, folder = parse({**raw, "seed": TUNED_ON}, "privacy"), runs / rows / name.replace("/", "-")
    tuned = tune_alone(tuned_on, plan, folder, f"python benchmarks/privacy.py --rows {rows}", "image")
    experiment = with_settings(parse({**raw, "seed": seed}, "privacy"), tuned, "image")
    task, (arm,) = prepare(experiment)
    started = time.process_time()
    with SerialExecutor(experiment, task) as executor:
        run = finish(arm, executor)
    views, mechanism = run.records[-1].views, arm.mechanism
    return {
        "accuracy": views.get("server@global", views.get("client@global")),
        "epsilon": None if mechanism is None else max(spent_epsilons(arm, run.records)),
        "delta": None if mechanism is None else mechanism.delta,
        "noise": getattr(mechanism, "noise", None),
        "settings": settings_of(tuned),
        "tuning": tuning_of(tuned),
        "seconds": round(time.process_time() - started, 2),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _varied(arm: dict[str, Any], vary: dict[str, Values | None]) -> dict[str, Values | None]:
    unused = ("train.loss", "train.batch_size") if arm.get("privacy", {}).get("kind") == "dp-sgd" else ()
    return {key: values for key, values in vary.items() if key not in unused}


if __name__ == "__main__":
    main()
