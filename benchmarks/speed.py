"""Speed against a plain PyTorch loop over the same batches, as ratios of medians in one run.

    python benchmarks/speed.py [--repeats 5] [--only W1] [--device cuda]

W1: FedAvg on Fashion-MNIST, 20 clients x 1,000 images, batch 32, one epoch.
W2: DS-FL on the same, with 2,000 public images.
W3: FedAvg, 1,000 clients x 20 images, batch 32, one epoch.

The network is convolutions of 16 and 32 channels (3x3), each with ReLU and a pool, and one linear layer.
The plain loop has its images as float tensors in memory, makes its batches by indexing, and exchanges
tensors in place of frames: (a) in one process with two threads, (b) in two processes with one thread each.
Both sides are warm; evaluation is left out on both. Rounds of the three take turns, so that a noisy
neighbour hits all alike.

With ``--device cuda``, W1 and W2 on a device: the plain loop in one process, with its images in the device's
memory, against fedistill in one process and in four that share the device. Its peak memory is that of the
processor's memory. Without a device it ends with a message.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# What loads data is imported where a side starts: worker processes import this file too, and data
# libraries that they never use would count as their memory.
from fedistill.data.task import Task
from fedistill.errors import ExperimentError
from fedistill.training.devices import device_name, find_device

RESULTS = Path(__file__).parent / "results"
BATCH, LR, MOMENTUM = 32, 0.05, 0.9
AIMS = {"W1": (0.45, 0.55), "W2": (0.45, 0.55), "W3": (0.70, None)}
AIM_MEMORY = 1.2e9
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {"method": "fedavg", "clients": 20, "limit": 20_000, "public": 0},
    "W2": {"method": "dsfl", "clients": 20, "limit": 20_000, "public": 2_000},
    "W3": {"method": "fedavg", "clients": 1_000, "limit": 20_000, "public": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="counted rounds of each side")
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], default="cpu")
    arguments = parser.parse_args()
    device = arguments.device
    try:
        about = {} if device == "cpu" else {"device": device_name(find_device(device))}
    except ExperimentError as error:
        parser.error(str(error))
    names = [arguments.only] if arguments.only else [*WORKLOADS] if device == "cpu" else ["W1", "W2"]
    path = RESULTS / ("speed.json" if device == "cpu" else f"speed-{device}.json")
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        found = measure(name, arguments.repeats, device)
        kept[name] = {**machine(name, arguments.repeats, device), **about, **found}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")


def measure(name: str, repeats: int, device: str) -> dict[str, Any]:
    """Take turns between the sides; print and return the medians and fedistill's ratios to the others."""
    sides = {
        side: Side(serve, name, repeats, device)
        for side, serve in (SIDES if device == "cpu" else SIDES_OF_DEVICES).items()
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side, process in sides.items():
            seconds[side].append(process.round())
    peaks = {side: process.close() for side, process in sides.items()}
    # The first round of each side warms it up; DS-FL has nothing to distil in it.
    medians = {side: statistics.median(values[1:]) for side, values in seconds.items()}
    ours, plain = (
        [side for side in sides if side.startswith("fedistill") == is_ours] for is_ours in (True, False)
    )
    ratios = {side: medians["fedistill"] / medians[side] for side in plain}
    ratios |= {f"{side} to {other}": medians[side] / medians[other] for side in ours[1:] for other in plain}
    aims = dict(zip(plain, AIMS[name], strict=True)) if device == "cpu" else {}
    took = ", ".join(f"{side} {medians[side]:.2f}" for side in sides)
    each = ", ".join(f"{key} {value:.2f} (aim {aims.get(key) or '-'})" for key, value in ratios.items())
    print(
        f"{name} on {device}: seconds per round: {took}; ratios: {each};"
        f" peak memory {peaks['fedistill'] / 1e9:.2f} GB (aim {AIM_MEMORY / 1e9})",
        flush=True,
    )
    return {
        "seconds": seconds,
        "medians": medians,
        "ratios": ratios,
        "peak_bytes": int(peaks["fedistill"]),
    }


class Side:
    """One of the three in a process of its own, so that none works with another's heap or threads."""

    def __init__(self, serve: Callable[..., None], name: str, repeats: int, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, repeats, device))
        self._process.start()
        self._pipe.recv()
        self._peak = 0.0

    def round(self) -> float:
        """Play one round; return its seconds."""
        self._pipe.send("round")
        while not self._pipe.poll(0.1):
            self._look()
        seconds: float = self._pipe.recv()
        self._look()
        return seconds

    def close(self) -> float:
        """Stop; return the largest sum of proportional set sizes seen over the process tree, in bytes."""
        self._pipe.send(None)
        self._process.join()
        return self._peak

    def _look(self) -> None:
        assert self._process.pid is not None
        self._peak = max(self._peak, sum(held(pid) for pid in tree(self._process.pid)))


def serve_fedistill(pipe: Any, name: str, repeats: int, device: str, workers: int = 2) -> None:
    from fedistill import parse
    from fedistill.experiment.runner import prepare
    from fedistill.federation import local_executor
    from fedistill.federation.round import play_round
    from fedistill.federation.setup import start_run

    experiment = parse(experiment_of(WORKLOADS[name], repeats + 1, device, workers), name)
    task, arms = prepare(experiment)
    with local_executor.start_executor(experiment, task) as executor:
        run = start_run(arms[0])
        pipe.send("ready")
        while pipe.recv():
            pipe.send(play_round(run, arms[0], executor).seconds)


def serve_one(pipe: Any, name: str, repeats: int, device: str) -> None:
    serve_fedistill(pipe, name, repeats, device, workers=1)


def serve_four(pipe: Any, name: str, repeats: int, device: str) -> None:
    serve_fedistill(pipe, name, repeats, device, workers=4)


def serve_one_process(pipe: Any, name: str, repeats: int, device: str) -> None:
    plain, step = plain_loop(name, repeats, device)
    torch.set_num_threads(2)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(timed(lambda: step(lambda work: map(work, range(len(plain.clients)))), device))


def serve_two_processes(pipe: Any, name: str, repeats: int, device: str) -> None:
    plain, step = plain_loop(name, repeats)
    torch.set_num_threads(1)
    two = TwoProcesses(plain, name, repeats)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(timed(lambda: step(two.map), device))
    two.close()


SIDES = {"fedistill": serve_fedistill, "a": serve_one_process, "b": serve_two_processes}
SIDES_OF_DEVICES = {"fedistill": serve_one, "fedistill-4": serve_four, "a": serve_one_process}


def plain_loop(name: str, repeats: int, device: str = "cpu") -> "tuple[Plain, Callable[..., None]]":
    from fedistill import parse
    from fedistill.experiment.runner import prepare

    task, _ = prepare(parse(experiment_of(WORKLOADS[name], repeats + 1), name))
    plain = Plain(task, device)
    return plain, plain.dsfl_round if WORKLOADS[name]["method"] == "dsfl" else plain.fedavg_round


def experiment_of(
    workload: dict[str, Any], rounds: int, device: str = "cpu", workers: int = 2
) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "task": {
            "name": "fashion-mnist",
            "clients": workload["clients"],
            "limit": workload["limit"],
            "public": workload["public"],
        },
        "models": {"clients": ["cnn-s"], "server": "cnn-s"},
        "train": {
            "epochs": 1,
            "batch_size": BATCH,
            "optimizer": {"name": "sgd", "lr": LR, "momentum": MOMENTUM},
        },
        "evaluate": {"every": rounds},
        "runtime": {"kind": "processes" if workers > 1 else "serial", "workers": workers, "device": device},
        "arms": [{"method": workload["method"]}],
    }


class Plain:
    """What one writes without a framework."""

    def __init__(self, task: Task, device: str) -> None:
        self.clients = [(scaled(data.samples).to(device), data.labels.to(device)) for data in task.clients]
        self.public = None if task.public is None else scaled(task.public.samples).to(device)
        self.model = network().to(device)
        self.average = self.model.state_dict()
        # DS-FL: each client has its own model and optimiser.
        self.states = [clone(network().to(device).state_dict()) for _ in self.clients]
        self.labels: Tensor | None = None

    def fedavg_round(self, each: Callable[[Callable[[int], Any]], Any]) -> None:
        total: dict[str, Tensor] = {}
        for weights in each(self.fedavg_client):
            for name, value in weights.items():
                total[name] = total[name] + value if name in total else value.clone()
        self.average = {name: value / len(self.clients) for name, value in total.items()}

    def fedavg_client(self, client: int) -> dict[str, Tensor]:
        self.model.load_state_dict(self.average)
        images, labels = self.clients[client]
        train(self.model, images, lambda out, at: F.cross_entropy(out, labels[at]))
        return clone(self.model.state_dict())

    def dsfl_round(self, each: Callable[[Callable[[int], Any]], Any]) -> None:
        assert self.public is not None
        mean = torch.stack(list(each(self.dsfl_client))).mean(dim=0)
        labels = torch.softmax(mean / 0.1, dim=1)
        self.model.load_state_dict(self.average)
        train(self.model, self.public, lambda out, at: divergence(out, labels[at]))
        self.average = clone(self.model.state_dict())
        self.labels = labels

    def dsfl_client(self, client: int) -> Tensor:
        assert self.public is not None
        self.model.load_state_dict(self.states[client])
        images, labels = self.clients[client]
        if (told := self.labels) is not None:
            train(self.model, self.public, lambda out, at: divergence(out, told[at]))
        train(self.model, images, lambda out, at: F.cross_entropy(out, labels[at]))
        self.states[client] = clone(self.model.state_dict())
        with torch.no_grad():
            return torch.cat([self.model(part).softmax(dim=1) for part in self.public.split(500)])


class TwoProcesses:
    """The plain loop's own two processes, each with half of the clients and one thread."""

    def __init__(self, plain: Plain, name: str, repeats: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._plain = plain
        self._pipes, self._processes = [], []
        for half in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_half, args=(theirs, name, repeats, half), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv_bytes()

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send_bytes(b"")
            process.join()

    def map(self, work: Callable[[int], Any]) -> Iterator[Any]:
        # Plain pickles: torch's own would open a file for each of thousands of tensors.
        request = pickle.dumps((work.__name__, self._plain.average, self._plain.labels))
        for pipe in self._pipes:
            pipe.send_bytes(request)
        halves = [pickle.loads(pipe.recv_bytes()) for pipe in self._pipes]
        for client in range(len(self._plain.clients)):
            yield halves[client % 2][client // 2]


def serve_half(pipe: Any, name: str, repeats: int, half: int) -> None:
    plain, _ = plain_loop(name, repeats)
    torch.set_num_threads(1)
    pipe.send_bytes(b"ready")
    while request := pipe.recv_bytes():
        work, plain.average, plain.labels = pickle.loads(request)
        done = [getattr(plain, work)(client) for client in range(half, len(plain.clients), 2)]
        pipe.send_bytes(pickle.dumps(done))


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    )


def train(model: nn.Module, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    for at in torch.randperm(len(images)).to(images.device).split(BATCH):
        optimizer.zero_grad()
        loss(model(images[at]), at).backward()
        optimizer.step()


def divergence(out: Tensor, probs: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(out, dim=1), probs, reduction="batchmean")


def scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def clone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def timed(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def tree(pid: int) -> list[int]:
    children: list[str] = []
    # Each thread has a list of the processes that it started.
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += listed.read_text().split()
        except OSError:  # the thread has ended
            continue
    return [pid, *(found for child in children for found in tree(int(child)))]


def held(pid: int, kinds: tuple[str, ...] = ("Pss",)) -> float:
    """Return the bytes that a process holds, of the kinds that the system tells apart."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in kinds)


def machine(name: str, repeats: int, device: str) -> dict[str, Any]:
    on = "" if device == "cpu" else f" --device {device}"
    return {
        "command": f"python benchmarks/speed.py --only {name} --repeats {repeats}{on}",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
