"""What does privacy cost in accuracy?

    python benchmarks/privacy.py [--seeds 0 1 2] [--rows dp-sgd votes]

Digits. `dp-sgd`: 5 clients (Dirichlet 1), 10 rounds, methods that send weights, soft labels, votes or
nothing, at several budgets ε and without noise. `votes`: 20 clients with an even share each, who train for
long and vote or label once, with noise at the client or at a trusted server. Accuracy is the server's model
on the test set after the last round; of `local`, the mean of the clients' models. Settings were chosen on
seed 100, which is not among those reported. Rows that are kept already are not run again. `python
docs/generate.py` makes the tables of docs/privacy.md of what is kept. It takes some six minutes on one
core.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep, kept_rows

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.privacy_budget import spent_epsilons
from fedistill.testing.runs import finish

RESULTS = Path(__file__).parent / "results" / "privacy.json"
BUDGETS = (1.0, 3.0, 8.0)
METHODS = ("fedavg", "dsfl", "voting", "local")
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
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of the rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for rows in given.rows:
            setting = f"{rows}, seed {seed}"
            for name, experiment in (_dp_sgd() if rows == "dp-sgd" else _votes()).items():
                if name in kept_rows(given.out, setting):
                    continue
                row = _measured({**experiment, "seed": seed})
                keep(given.out, setting, name, row)
                print(setting, name, f"{row['accuracy']:.3f}", row["epsilon"], flush=True)


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
    """Each method at each budget, and without noise, at a learning rate that suits it."""
    found = {}
    for method in METHODS:
        for budget in BUDGETS:
            table = {"kind": "dp-sgd", "epsilon": budget, "rate": 0.3}
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
        arm |= {"aggregation": "mean"} if method == "dsfl" else {}
        for table in (None, *tables):
            base = _experiment(1, clients=20, public=200, alpha=100.0, lr=0.1, epochs=20)
            name = "none/" if table is None else f"{table['kind']}/{table.get('each', table.get('noise')):g}"
            noisy = {} if table is None else {"privacy": table}
            found[f"{method}/{name}"] = {**base, "arms": [{**arm, **noisy}]}
    return found


def _measured(raw: dict[str, Any]) -> dict[str, Any]:
    experiment = parse(raw, "benchmark")
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
        "seconds": round(time.process_time() - started, 2),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main()
