"""Digests of what every example does, to hold a change of structure against: nothing may differ.

    python tests/golden.py > before.txt     # then change the structure
    python tests/golden.py | diff before.txt -

Each example runs for two rounds, Fashion-MNIST with 1,000 images. A line has the digest of its outcome
(``results.json`` without times, versions and the command), of every frame in order as it crossed, of
the final models and of the checkpoint. Digests are those of one machine: another processor rounds otherwise.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fedistill.config.toml import load
from fedistill.errors import FedistillError
from fedistill.experiment.runner import run_experiment
from fedistill.federation.ledger import Ledger
from helpers.watchers import Watcher

EXAMPLES = Path(__file__).parents[1] / "examples"
TIMES = ("seconds", "versions", "version", "hardware", "command")


def digests(path: Path) -> str:
    """One line for an example."""
    # Two rounds of an adaptive or a long accumulation are still two rounds.
    overrides = ["rounds=2", 'runtime.kind="serial"']
    if "fashion-mnist" in path.read_text(encoding="utf-8"):
        overrides.append("task.limit=1000")
    frames = hashlib.blake2b(digest_size=8)
    count = Ledger.count

    def counted(self: Ledger, round: int, client: int, direction: Any, frame: bytes) -> None:
        frames.update(f"{round}/{client}/{direction}/{len(frame)}/".encode() + frame)
        count(self, round, client, direction, frame)

    name = path.relative_to(EXAMPLES).as_posix()
    Ledger.count = counted  # type: ignore[method-assign]  # the one place that all frames pass
    sys.path.insert(0, str(EXAMPLES.parent))  # where the examples' own models are looked up from
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            experiment = load(path, overrides)
            first = experiment.with_seed(experiment.all_seeds[0])
            results = run_experiment(first, out, "golden", Watcher())
            models = _files(out / "models")
            checkpoint = _files(out / "checkpoint")
    except FedistillError as error:
        return f"{name}: {type(error).__name__}: {error}"
    finally:
        Ledger.count = count  # type: ignore[method-assign]  # a spy was in its place
        sys.path.remove(str(EXAMPLES.parent))
    outcome = _digest(json.dumps(_timeless(results), sort_keys=True).encode())
    return f"{name}: results {outcome} frames {frames.hexdigest()} models {models} checkpoint {checkpoint}"


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _files(folder: Path) -> str:
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Print digests of what every example does.")
    parser.add_argument("examples", nargs="*", type=Path, help="experiment files; default: all examples")
    parser.add_argument("--workers", type=int, default=2)
    wanted = parser.parse_args()
    paths = [path.resolve() for path in wanted.examples] or sorted(EXAMPLES.rglob("*.toml"))
    with ProcessPoolExecutor(wanted.workers, get_context("spawn")) as pool:
        for line in pool.map(digests, paths):
            print(line, flush=True)


if __name__ == "__main__":
    main()
