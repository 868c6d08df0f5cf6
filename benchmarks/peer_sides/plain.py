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
loop: Any
if settings["network"] == "mlp-s":
    loop = small_clients.Plain(SimpleNamespace(task=task))  # type: ignore[arg-type]
else:
    loop = speed.Plain(task, "cpu")
everyone = range(settings["clients"])
for _ in range(settings["rounds"]):
    turns.wait()
    if settings["network"] == "mlp-s":
        loop.round(random.sample(everyone, settings["participants"]))
    else:
        loop.fedavg_round(lambda work: map(work, everyone))
    turns.played()
loop.model.load_state_dict(loop.average)
turns.score(workload, loop.model)
