"""What do secure sums cost, in bytes, accuracy and time?

    python benchmarks/secure_sums.py [--arms dsfl ...] [--seeds 0 1 2] [--out FILE]
    python benchmarks/secure_sums.py --sharing

Digits, 10 clients, Dirichlet 0.5, 3 rounds, or one for statistics: each arm without secure sums and with, the
latter in its default settings. Bytes are those of one client in the last round in which messages crossed, the
mean over clients. Rows that are kept already are not run again. `python docs/generate.py` makes the table of
docs/secure-sums.md of what is kept.

With ``--sharing``, it times what `pycryptodome` takes to share a secret among clients, and to join it again.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import Crypto
import cryptography
import torch
from kept import keep, kept_rows

from fedistill import parse
from fedistill.communication.secure_aggregation.primitives import joined, split
from fedistill.config.secure_sums import SecureSums
from fedistill.experiment.runner import prepare
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run

RESULTS = Path(__file__).parent / "results" / "secure_sums.json"
ARMS: dict[str, dict[str, Any]] = {
    "dsfl": {},
    "voting": {},
    "gaussian": {},
    "ridge": {},
    "fedavg": {},
}
FORMS = ("plain", "secure")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of the rows")
    parser.add_argument("--sharing", action="store_true", help="time the sharing of secrets instead")
    given = parser.parse_args()
    if given.sharing:
        time_sharing()
        return
    for seed in given.seeds:
        for name in given.arms:
            for form in FORMS:
                measure(given.out, seed, name, form)


def measure(out: Path, seed: int, name: str, form: str) -> None:
    """Run one arm in one form and keep its row, unless it is kept already."""
    setting, row = f"seed {seed}", f"{name}/{form}"
    if row in kept_rows(out, setting):
        return
    arm = {"method": name, **ARMS[name], **({"secure_sums": True} if form == "secure" else {})}
    raw: dict[str, Any] = {
        "seed": seed,
        "rounds": ROUNDS,
        "task": {
            "name": "digits",
            "clients": 10,
            "public": 200,
            "partition": {"kind": "dirichlet", "alpha": 0.5, "min_samples": 10},
        },
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
        "evaluate": {"every": ROUNDS},
        "runtime": {"kind": "serial"},
        "arms": [arm],
    }
    experiment = parse(raw, "secure sums")
    task, (ready,) = prepare(experiment)
    run = start_run(ready)
    started = time.process_time()
    with SerialExecutor(experiment, task) as executor:
        while run.round < ROUNDS:
            play_round(run, ready, executor)
    record = next(one for one in reversed(run.records) if one.traffic)
    per_client = {
        way: round(sum(one.bytes for one in record.traffic if one.direction == way) / len(record.clients))
        for way in ("up", "down")
    }
    masked = sum(one.bytes for one in record.traffic if one.kind == "secure-addends") / len(record.clients)
    found = {
        "accuracy": round(run.records[-1].views["server@global"], 4),
        **per_client,
        "masked": round(masked),
        "processor_seconds": round(time.process_time() - started, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(f"{setting}, {row}: {found}", flush=True)
    keep(out, setting, row, found)


def time_sharing() -> None:
    """Time one secret among so many clients: to share it, and to join it from as few as are needed."""
    for clients in (5, 10, 30, 100):
        needed = SecureSums().needed(clients)
        started = time.process_time()
        shares = split(bytes(16), needed, clients)
        shared = time.process_time()
        joined([*enumerate(shares)][:needed])
        found = {
            "needed": needed,
            "share_seconds": round(shared - started, 4),
            "join_seconds": round(time.process_time() - shared, 4),
            "pycryptodome": Crypto.__version__,
            "cryptography": cryptography.__version__,
            "python": platform.python_version(),
        }
        print(f"{clients} clients: {found}", flush=True)
        keep(RESULTS, "sharing", f"{clients}", found)


if __name__ == "__main__":
    main()
