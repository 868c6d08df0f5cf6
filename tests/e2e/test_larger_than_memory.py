"""Samples need not fit into memory: of a run's processes together, none of it grows with them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from helpers.files import Files

IMAGES, SIDE = 6000, 128

SCRIPT = '''
"""Plays a round of few samples and one of all, and says what the second took beyond the first."""

import json
import os
import sys
import threading
from pathlib import Path

from torch import nn

from fedistill import parse
from fedistill.experiment.runner import prepare
from fedistill.federation.setup import start_run
from fedistill.federation.local_executor import start_executor
from fedistill.federation.round import play_round


def net(signature):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, signature.classes))


def children(process):
    threads = Path(f"/proc/{process}/task").glob("*/children")
    own = [int(child) for thread in threads for child in thread.read_text().split()]
    return [*own, *(one for child in own for one in children(child))]


def memory():
    """Bytes of this process and its workers that the system cannot take back: all but the files' cache."""
    held = 0
    for process in [os.getpid(), *children(os.getpid())]:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon", "Pss_Shmem")):
                held += 1024 * int(line.split()[1])
    return held


def peak_of(limit):
    seen, done = [memory()], threading.Event()

    def watch():
        while not done.wait(0.01):
            try:
                seen.append(memory())
            except (FileNotFoundError, ProcessLookupError):  # a worker that has ended
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    experiment = parse({
        "task": {"format": "parquet", "train": sys.argv[1], "test_share": 0.01, "clients": 8, "limit": limit},
        "models": {"clients": ["script:net"], "server": "script:net"},
        "train": {"epochs": 1},
        "runtime": {"kind": "processes", "workers": 2},
        "rounds": 1,
        "arms": [{"method": "fedavg"}],
    }, "test")
    task, (arm,) = prepare(experiment, Path(sys.argv[2]))
    with start_executor(experiment, task) as executor:
        play_round(start_run(arm), arm, executor)
    done.set()
    watcher.join()
    return max(seen), sum(client.samples.nbytes for client in task.clients)


if __name__ == "__main__":
    before, few = peak_of(50)
    peak, samples = peak_of(int(sys.argv[3]))
    print(json.dumps({"more": peak - before, "samples": samples - few}))
'''


def picture(label: int, noise: np.random.Generator) -> bytes:
    sink = io.BytesIO()
    pixels = noise.integers(0, 128, (4, 4, 3), dtype=np.uint8) + 127 * (np.arange(3) == label)
    PIL.Image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE)).save(sink, "JPEG")
    return sink.getvalue()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="what processes share is known on Linux alone")
def test_a_run_takes_a_part_of_the_memory_of_its_samples(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    (tmp_path / "script.py").write_text(SCRIPT)
    files = Files(tmp_path)
    path = files.images(
        "p.parquet", [picture(n % 3, noise) for n in range(IMAGES)], [n % 3 for n in range(IMAGES)]
    )
    done = subprocess.run(
        [sys.executable, "script.py", path, str(tmp_path / "out"), str(IMAGES)],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["samples"] > 0.98 * IMAGES * 3 * SIDE * SIDE - 10_000_000
    assert found["more"] < found["samples"] / 2
