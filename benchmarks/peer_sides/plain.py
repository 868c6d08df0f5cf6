"""The side without a framework: the loops of benchmarks/small_clients.py and benchmarks/speed.py."""

import random
from types import SimpleNamespace
from typing import Any

import small_clients
import speed
from turns import started

workload, turns = started()
settings = workload.settings
task: Any = SimpleNamespace(
    clients=[
        SimpleNamespace(samples=pixels, labels=labels)
        for pixels, labels in zip(workload.pixels, workload.labels, strict=True)
    ],
    public=None,
)
everyone = range(settings["clients"])
loop: small_clients.Plain | speed.Plain
if settings["network"] == "mlp-s":
    small = loop = small_clients.Plain(SimpleNamespace(task=task))  # type: ignore[arg-type]

    def play() -> None:
        small.round(random.sample(everyone, settings["participants"]))
else:
    large = loop = speed.Plain(task, "cpu", {"method": "fedavg", "model": settings["network"]}, tuned=False)

    def play() -> None:
        large.fedavg_round(map)


for _ in range(settings["rounds"]):
    turns.wait()
    play()
    turns.played()
loop.model.load_state_dict(loop.average)
turns.score(workload, loop.model)
