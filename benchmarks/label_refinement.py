"""How many pooled labels of public samples are right, as counted and after `refine_labels`?

    FEDISTILL_DATA=FOLDER python benchmarks/label_refinement.py [--tasks NAME ...] [--seeds 10 11 12 13]

Tasks and arms are those of benchmarks/flagship.py; seeds are others than its own. Each arm runs until its
clients have voted; the labels of the public set, which no participant has, say how many are right. The test
set is not read. Rows are kept in results/label-refinement.json, of which docs/flagship.md has a table.
"""

import argparse
import platform
from pathlib import Path

import torch
from flagship import SAMPLING, TASKS, arms_of, experiment
from kept import keep, kept_rows

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation import local_executor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.shared.expertise import pool_votes, sizes

RESULTS = Path(__file__).parent / "results" / "label-refinement.json"
ARMS = {
    "fashion-10": "bridge-at-once-refined",
    "mnist-10": "bridge-at-once-refined",
    "digits-10": "bridge-at-once-refined",
    "bbc-5": "bridge-refined",
}
MOST_ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13])
    arguments = parser.parse_args()
    for task in arguments.tasks:
        for seed in arguments.seeds:
            if str(seed) not in kept_rows(RESULTS, task):
                measure(task, seed)


def measure(task: str, seed: int) -> None:
    kind, setting = TASKS[task]
    raw = {
        **experiment(kind),
        **SAMPLING.get(task, {}),
        "seed": seed,
        "rounds": MOST_ROUNDS,
        "evaluate": {"every": MOST_ROUNDS},
        "task": setting,
        "arms": [arms_of(kind)[ARMS[task]]],
    }
    asked = parse(raw, "label refinement")
    data, (arm,) = prepare(asked)
    run = start_run(arm)
    with local_executor.start_executor(asked, data) as executor:
        while run.round < MOST_ROUNDS and not run.server.starts:
            play_round(run, arm, executor)
    state, truth = run.server, arm.task.public_labels
    assert truth is not None
    truth = truth[: len(state.labels)]
    counted = pool_votes(state.votes, sizes(state.levels))
    row = {
        "samples": len(truth),
        "counted": _share(counted == truth),
        "abstained": _share(counted == len(arm.task.classes)),
        "refined": _share(state.labels == truth),
        "command": f"python benchmarks/label_refinement.py --tasks {task} --seeds {seed}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(task, seed, row, flush=True)
    keep(RESULTS, task, str(seed), row)


def _share(found: torch.Tensor) -> float:
    return round(float(found.double().mean()), 4)


if __name__ == "__main__":
    main()
