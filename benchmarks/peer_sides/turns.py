"""What the sides of benchmarks/peers.py share: the data, the network, and how rounds are asked for.

A side is started as ``python SCRIPT DATA SETTINGS``: a file of tensors, and a text of JSON. It plays one
round for each line that it reads, and answers with one line of JSON. Nothing but torch is needed here, since
each library has an environment of its own.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Client = tuple[Tensor, Tensor]


class Workload:
    """Images as float tensors in memory, as each library may have them."""

    def __init__(self, path: str, settings: str) -> None:
        self.settings: dict[str, Any] = json.loads(settings)
        torch.manual_seed(self.settings["seed"])
        data = torch.load(path)
        sizes = data["sizes"].tolist()
        self.pixels = data["samples"].split(sizes)
        self.labels = data["labels"].split(sizes)
        self.test = scaled(data["test_samples"]), data["test_labels"]

    @cached_property
    def clients(self) -> list[Client]:
        return [(scaled(pixels), labels) for pixels, labels in zip(self.pixels, self.labels, strict=True)]

    def network(self) -> nn.Module:
        return NETWORKS[self.settings["network"]]()

    def score(self, model: nn.Module) -> dict[str, float]:
        """Return a model's accuracy and loss on the test images."""
        images, labels = self.test
        model.eval()
        with torch.no_grad():
            out = torch.cat([model(part) for part in images.split(500)])
        accuracy = float((out.argmax(dim=1) == labels).double().mean())
        return {"accuracy": accuracy, "loss": float(F.cross_entropy(out, labels))}


class Turns:
    """Waits for the parent to ask for a round, and tells it what the round took."""

    def __init__(self, processor: Callable[[], float] = time.process_time) -> None:
        torch.set_num_threads(1)
        # Libraries print too: what they say joins the errors in the log.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._processor = processor
        self._ready = False

    def wait(self) -> None:
        """Wait for the next round and start the clocks; the first time, say that the side is ready."""
        if not self._ready:
            self._ready = True
            versions = {"python": sys.version.split()[0], "torch": torch.__version__}
            self._say({"versions": versions, "prepared": self._processor()})
        if not sys.stdin.readline():  # the parent is gone
            os._exit(1)
        self._began = time.perf_counter(), self._processor()

    def played(self) -> None:
        self._say(
            {
                "seconds": time.perf_counter() - self._began[0],
                "processor": self._processor() - self._began[1],
            }
        )

    def score(self, workload: Workload, model: nn.Module) -> None:
        """After the last round: say how good the model is, which nobody times."""
        self._say(workload.score(model))

    def _say(self, what: dict[str, Any]) -> None:
        print(json.dumps(what), file=self._out, flush=True)


def started(processor: Callable[[], float] = time.process_time) -> tuple[Workload, Turns]:
    turns = Turns(processor)
    return Workload(*sys.argv[1:3]), turns


def scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    )


NETWORKS = {"mlp-s": mlp, "cnn-s": cnn}


def processor_of_tree() -> float:
    """Seconds of processor time of this process and of its descendants that live."""
    return time.process_time() + sum(map(_spent, _descendants(os.getpid())))


def _descendants(pid: int) -> list[int]:
    found = []
    # Children are listed by the thread that started them.
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in listed.read_text().split()]
        except OSError:
            continue
        found += [one for child in children for one in (child, *_descendants(child))]
    return found


def _spent(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
