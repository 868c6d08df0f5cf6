"""Speed against a plain PyTorch loop over the same batches, as ratios of medians in one run.

    python benchmarks/speed.py [--repeats 5] [--only W1 W2] [--device cuda]

W1: FedAvg on Fashion-MNIST, 20 clients x 1,000 images, batch 32, one epoch.
W2: DS-FL on the same, with 2,000 public images.
W3: FedAvg, 1,000 clients x 20 images, batch 32, one epoch.
W4: FedAvg, 200 clients x 100 images.
W5: FedAvg, 10,000 clients x 6 images, of which 200 take part in a round.
W8: DS-FL, 10 clients x 1,000 images and 2,000 public ones, and a larger network at the server.

The network is convolutions of 16 and 32 channels (3x3), each with ReLU and a pool, and one linear layer; in
W4 and W5 it is 784-64-10, and W8's server has fedistill's `cnn-m`. fedistill has two worker processes; in W4
and W5 also with `runtime.fast`, and in W8 with `runtime.server_threads = 2`.

The plain loop has its images as float tensors in memory, makes its batches by indexing, and exchanges
tensors in place of frames: (a) in one process with two threads, (b) in two processes with one thread each,
(c) as (b), with a heap that keeps its memory, images in the layout channels_last, and pools before ReLUs.
All sides are warm, and evaluate nothing. Their rounds take turns, so that a noisy neighbour hits all alike.

With ``--device cuda``, W1 and W2 on a device: the plain loop in one process, with its images in the device's
memory, against fedistill in one process and in four that share the device. Its peak memory is that of the
processor's memory. Without a device it ends with a message.
"""

import argparse
import multiprocessing
import os
import pickle
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from kept import keep
from torch import Tensor, nn
from torch.nn import functional as F

# What loads data is imported where a side starts: worker processes import this file too, and data
# libraries that they never use would count as their memory.
from fedistill.data.task import Task
from fedistill.errors import ExperimentError
from fedistill.models.registry import build_model
from fedistill.training.devices import device_name, find_device

RESULTS = Path(__file__).parent / "results" / "speed.json"
BATCH, LR, MOMENTUM = 32, 0.05, 0.9
AIMS = {"W1": 0.28, "W2": 0.29, "W3": 0.40, "W4": 0.60, "W5": 0.90}
"""Of (a), in the exact mode."""
AIMS_FAST = {"W4": 0.30, "W5": 0.35}
AIM_MEMORY = 6e8
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {"method": "fedavg", "clients": 20, "limit": 20_000, "public": 0},
    "W2": {"method": "dsfl", "clients": 20, "limit": 20_000, "public": 2_000},
    "W3": {"method": "fedavg", "clients": 1_000, "limit": 20_000, "public": 0},
    "W4": {"method": "fedavg", "clients": 200, "limit": 20_000, "public": 0, "model": "mlp-s"},
    "W5": {
        "method": "fedavg",
        "clients": 10_000,
        "limit": 60_000,
        "public": 0,
        "model": "mlp-s",
        "fraction": 0.02,
    },
    "W8": {"method": "dsfl", "clients": 10, "limit": 10_000, "public": 2_000, "server": "cnn-m"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="counted rounds of each side")
    parser.add_argument("--only", choices=WORKLOADS, nargs="+", help="some workloads; default: all")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], default="cpu")
    arguments = parser.parse_args()
    device = arguments.device
    try:
        about = {} if device == "cpu" else {"device": device_name(find_device(device))}
    except ExperimentError as error:
        parser.error(str(error))
    path = RESULTS if device == "cpu" else RESULTS.with_stem(f"speed-{device}")
    for name in arguments.only or (WORKLOADS if device == "cpu" else ["W1", "W2"]):
        found = measure(name, arguments.repeats, device)
        keep(path, name, "now", {**machine(name, arguments.repeats, device), **about, **found})


def measure(name: str, repeats: int, device: str) -> dict[str, Any]:
    """Take turns between the sides; print and return the medians and the ratios of ours to plain loops."""
    settings = sides_of(name, device)
    sides = {side: Side(serve, name, repeats, device, more) for side, (serve, more) in settings.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side, process in sides.items():
            seconds[side].append(process.round())
    peaks = {side: int(process.close()) for side, process in sides.items()}
    # The first round of each side warms it up; DS-FL has nothing to distil in it.
    medians = {side: statistics.median(values[1:]) for side, values in seconds.items()}
    ours = [side for side in sides if side.startswith("fedistill")]
    ratios = {
        side: {other: medians[side] / medians[other] for other in sides if other not in ours} for side in ours
    }
    print(f"{name} on {device}, medians in seconds: {shown(medians)}")
    for side, found in ratios.items():
        aim = {"fedistill": AIMS, "fedistill, fast": AIMS_FAST}.get(side, {}).get(name, "-")
        print(f"  {side}: {shown(found)} (aim {aim} of a), {peaks[side] / 1e9:.2f} GB", flush=True)
    return {"seconds": seconds, "medians": medians, "ratios": ratios, "peak_bytes": peaks}


def shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


class Side:
    """One side in a process of its own, so that none works with another's heap or threads."""

    def __init__(
        self, serve: Callable[..., None], name: str, repeats: int, device: str, more: dict[str, Any]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, repeats, device), kwargs=more)
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


def sides_of(name: str, device: str) -> "dict[str, tuple[Callable[..., None], dict[str, Any]]]":
    """Return what serves each side, and its settings."""
    if device != "cpu":
        return {
            "fedistill": (serve_fedistill, {"workers": 1}),
            "fedistill, 4 processes": (serve_fedistill, {"workers": 4}),
            "a": (serve_one_process, {}),
        }
    more: dict[str, dict[str, Any]] = {}
    if "fraction" in WORKLOADS[name] or "model" in WORKLOADS[name]:
        more = {"fedistill, fast": {"fast": True}}
    elif "server" in WORKLOADS[name]:
        more = {"fedistill, 2 server threads": {"server_threads": 2}}
    return {
        **{side: (serve_fedistill, set_) for side, set_ in {"fedistill": {}, **more}.items()},
        "a": (serve_one_process, {}),
        "b": (serve_two_processes, {}),
        "c": (serve_two_processes, {"tuned": True}),
    }


def serve_fedistill(
    pipe: Any, name: str, repeats: int, device: str, workers: int = 2, **runtime: Any
) -> None:
    from fedistill import parse
    from fedistill.experiment.runner import prepare
    from fedistill.federation import local_executor
    from fedistill.federation.round import play_round
    from fedistill.federation.setup import start_run

    experiment = parse(experiment_of(WORKLOADS[name], repeats + 1, device, workers, **runtime), name)
    task, arms = prepare(experiment)
    with local_executor.start_executor(experiment, task) as executor:
        run = start_run(arms[0])
        pipe.send("ready")
        while pipe.recv():
            pipe.send(play_round(run, arms[0], executor).seconds)


def serve_one_process(pipe: Any, name: str, repeats: int, device: str) -> None:
    _, step = plain_loop(name, repeats, device)
    torch.set_num_threads(2)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(timed(lambda: step(map), device))


def serve_two_processes(pipe: Any, name: str, repeats: int, device: str, tuned: bool = False) -> None:
    plain, step = plain_loop(name, repeats, tuned=tuned)
    torch.set_num_threads(1)
    two = TwoProcesses(plain, name, repeats, tuned)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(timed(lambda: step(two.map), device))
    two.close()


def plain_loop(
    name: str, repeats: int, device: str = "cpu", tuned: bool = False
) -> "tuple[Plain, Callable[..., None]]":
    from fedistill import parse
    from fedistill.experiment.runner import prepare
    from fedistill.federation.executor import prepare_process

    workload = WORKLOADS[name]
    task, _ = prepare(parse(experiment_of(workload, repeats + 1), name))
    if tuned:
        prepare_process()
    plain = Plain(task, device, workload, tuned)
    return plain, plain.dsfl_round if workload["method"] == "dsfl" else plain.fedavg_round


def experiment_of(
    workload: dict[str, Any], rounds: int, device: str = "cpu", workers: int = 2, **runtime: Any
) -> dict[str, Any]:
    model = workload.get("model", "cnn-s")
    return {
        "rounds": rounds,
        "task": {
            "name": "fashion-mnist",
            "clients": workload["clients"],
            "limit": workload["limit"],
            "public": workload["public"],
        },
        "models": {"clients": [model], "server": workload.get("server", model)},
        "train": {
            "epochs": 1,
            "batch_size": BATCH,
            "optimizer": {"name": "sgd", "lr": LR, "momentum": MOMENTUM},
        },
        "sampling": {"fraction": workload.get("fraction", 1.0)},
        "evaluate": {"every": rounds},
        "runtime": {
            "kind": "processes" if workers > 1 else "serial",
            "workers": workers,
            "device": device,
            **runtime,
        },
        "arms": [{"method": workload["method"]}],
    }


class Plain:
    """What one writes without a framework."""

    def __init__(self, task: Task, device: str, workload: dict[str, Any], tuned: bool) -> None:
        self.layout = torch.channels_last if tuned else torch.contiguous_format
        self.clients = [
            (self.scaled(data.samples).to(device), data.labels.to(device)) for data in task.clients
        ]
        self.public = None if task.public is None else self.scaled(task.public.samples).to(device)
        self.model = network(workload.get("model", "cnn-s"), tuned).to(device)
        self.served = self.model
        if "server" in workload:
            self.served = build_model(workload["server"], task.signature, seed=0, client=0).to(device)
        self.average = clone(self.served.state_dict())
        # DS-FL: each client has its own model and optimiser.
        states = len(self.clients) if workload["method"] == "dsfl" else 0
        self.states = [clone(self.model.state_dict()) for _ in range(states)]
        self.labels: Tensor | None = None
        self.taking_part = round(workload.get("fraction", 1.0) * len(self.clients))

    def scaled(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 127.5 - 1).contiguous(memory_format=self.layout)

    def fedavg_round(self, each: "Each") -> None:
        total: dict[str, Tensor] = {}
        chosen = sorted(random.sample(range(len(self.clients)), self.taking_part))
        for weights in each(self.fedavg_client, chosen):
            for name, value in weights.items():
                total[name] = total[name] + value if name in total else value.clone()
        self.average = {name: value / len(chosen) for name, value in total.items()}

    def fedavg_client(self, client: int) -> dict[str, Tensor]:
        self.model.load_state_dict(self.average)
        images, labels = self.clients[client]
        self.train(self.model, images, lambda out, at: F.cross_entropy(out, labels[at]))
        return clone(self.model.state_dict())

    def dsfl_round(self, each: "Each") -> None:
        assert self.public is not None
        mean = torch.stack(list(each(self.dsfl_client, [*range(len(self.clients))]))).mean(dim=0)
        labels = torch.softmax(mean / 0.1, dim=1)
        self.served.load_state_dict(self.average)
        self.train(self.served, self.public, lambda out, at: divergence(out, labels[at]))
        self.average = clone(self.served.state_dict())
        self.labels = labels

    def dsfl_client(self, client: int) -> Tensor:
        assert self.public is not None
        self.model.load_state_dict(self.states[client])
        images, labels = self.clients[client]
        if (told := self.labels) is not None:
            self.train(self.model, self.public, lambda out, at: divergence(out, told[at]))
        self.train(self.model, images, lambda out, at: F.cross_entropy(out, labels[at]))
        self.states[client] = clone(self.model.state_dict())
        with torch.no_grad():
            return torch.cat([self.model(part).softmax(dim=1) for part in self.public.split(500)])

    def train(self, model: nn.Module, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
        for at in torch.randperm(len(images)).to(images.device).split(BATCH):
            optimizer.zero_grad()
            loss(model(images[at].contiguous(memory_format=self.layout)), at).backward()
            optimizer.step()


Each = Callable[[Callable[[int], Any], list[int]], Iterable[Any]]
"""Calls a function for each of some clients; results come in the same order."""


class TwoProcesses:
    """The plain loop's own two processes, each with half of the clients and one thread."""

    def __init__(self, plain: Plain, name: str, repeats: int, tuned: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._plain = plain
        self._pipes, self._processes = [], []
        for _ in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve_half, args=(theirs, name, repeats, tuned), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv_bytes()

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send_bytes(b"")
            process.join()

    def map(self, work: Callable[[int], Any], clients: list[int]) -> Iterator[Any]:
        # In DS-FL all clients take part, so that each stays in the process that has its state.
        halves = clients[::2], clients[1::2]
        for pipe, half in zip(self._pipes, halves, strict=True):
            # Plain pickles: torch's own would open a file for each of thousands of tensors.
            pipe.send_bytes(pickle.dumps((work.__name__, half, self._plain.average, self._plain.labels)))
        done = [iter(pickle.loads(pipe.recv_bytes())) for pipe in self._pipes]
        for place in range(len(clients)):
            yield next(done[place % 2])


def serve_half(pipe: Any, name: str, repeats: int, tuned: bool) -> None:
    plain, _ = plain_loop(name, repeats, tuned=tuned)
    torch.set_num_threads(1)
    pipe.send_bytes(b"ready")
    while request := pipe.recv_bytes():
        work, clients, plain.average, plain.labels = pickle.loads(request)
        pipe.send_bytes(pickle.dumps([getattr(plain, work)(client) for client in clients]))


def network(name: str, tuned: bool) -> nn.Module:
    if name == "mlp-s":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    # Both are monotone: a pool first leaves a quarter of the values to the ReLU.
    after = (nn.MaxPool2d(2), nn.ReLU()) if tuned else (nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), *after),
        *(nn.Conv2d(16, 32, 3, padding=1), *after),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    )


def divergence(out: Tensor, probs: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(out, dim=1), probs, reduction="batchmean")


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
