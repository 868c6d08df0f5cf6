"""What ``results.json`` says, made of the task and the state of each arm; `results` has its shape."""

import contextlib
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from fedistill.communication.codecs import registry as codecs
from fedistill.config.schema import Evaluate
from fedistill.data.task import Task
from fedistill.experiment.reliability import distrusted, mean_reliability
from fedistill.experiment.results import (
    SCHEMA,
    SCHEMA_OF_SEEDS,
    ArmJson,
    ArmOfSeedsJson,
    HardwareJson,
    PrivacyJson,
    ResultsJson,
    ResultsOfSeedsJson,
    RoundJson,
    SeedJson,
    Status,
    TaskJson,
    TaskOfSeedJson,
)
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun, RoundRecord
from fedistill.federation.metrics import Metric
from fedistill.federation.privacy_budget import spent_epsilons
from fedistill.federation.processes import cores
from fedistill.training.devices import CPU, device_name
from fedistill.training.threads import TORCH_THREADS

_PACKAGES = ("torch", "numpy", "datasets", "flwr-datasets", "constriction")
"""Dependencies whose version may change what a run's bits are."""


def results_of_seeds(
    command: str, seeds: Sequence[int], found: Mapping[int, ResultsJson]
) -> ResultsOfSeedsJson:
    """Return the results of several seeds from those of each that has any; at least one."""
    first, *_ = found.values()
    arms: list[ArmOfSeedsJson] = []
    for place, arm in enumerate(first["arms"]):
        arms.append(
            {
                "name": arm["name"],
                "method": arm["method"],
                "codec": arm["codec"],
                "server_model": arm["server_model"],
                "client_models": arm["client_models"],
                "parameters": arm["parameters"],
                "seeds": [seed_json(one["arms"][place]) for one in found.values()],
            }
        )
    tasks: list[TaskOfSeedJson] = [{"seed": seed, **one["task"]} for seed, one in found.items()]
    results: ResultsOfSeedsJson = {
        "schema": SCHEMA_OF_SEEDS,
        "version": first["version"],
        "versions": first["versions"],
        "hardware": first["hardware"],
        "command": command,
        "task": first["task"],
        "tasks": tasks,
        "seeds": list(seeds),
        "arms": arms,
    }
    if "metrics" in first:
        results["metrics"] = first["metrics"]
    return results


def seed_json(arm: SeedJson) -> SeedJson:
    """Return what an arm did with a seed, without what the arm is."""
    found: SeedJson = {
        "seed": arm["seed"],
        "status": arm["status"],
        "error": arm["error"],
        "parameters": arm["parameters"],
        "rounds": arm["rounds"],
        "bytes_setup": arm["bytes_setup"],
        "bytes_public": arm["bytes_public"],
        "bytes_total": arm["bytes_total"],
        "bytes_transport": arm["bytes_transport"],
    }
    if "multiply_adds" in arm and "memory" in arm:
        found["multiply_adds"], found["memory"] = arm["multiply_adds"], arm["memory"]
    if "privacy" in arm:
        found["privacy"] = arm["privacy"]
    if "liars" in arm:
        found["liars"] = arm["liars"]
    if "reliability" in arm and "distrusted" in arm:
        found["reliability"], found["distrusted"] = arm["reliability"], arm["distrusted"]
    if "bytes_evaluation" in arm:
        found["bytes_evaluation"] = arm["bytes_evaluation"]
    return found


def results_json(
    command: str,
    task: Task,
    arms: list[ArmJson],
    evaluate: Evaluate,
    metrics: Sequence[Metric],
    device: torch.device = CPU,
) -> ResultsJson:
    """Return the content of ``results.json``; ``device`` is where models computed."""
    found: ResultsJson = {
        "schema": SCHEMA,
        "version": version("fedistill"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "hardware": hardware_json(device),
        "command": command,
        "task": task_json(task, evaluate.hide_sites),
        "arms": arms,
    }
    if metrics:
        found["metrics"] = [
            {"name": one.name, "better": one.better, "most": one.most if math.isfinite(one.most) else None}
            for one in metrics
        ]
    return found


def hardware_json(device: torch.device = CPU) -> HardwareJson:
    """Return what may explain a difference in time or bits; nothing in it says whose machine it is."""
    found: HardwareJson = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
        "torch_threads": TORCH_THREADS,
        "platform": platform.platform(),
    }
    if device != CPU:
        found["device"] = {"type": device.type, "name": device_name(device)}
    return found


def _processor() -> str:
    """The processor's model where the system says it, or else its family."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def task_json(task: Task, hide_sites: bool = False) -> TaskJson:
    """Return samples by client and class, unless they are hidden, the public set and the vocabulary."""
    public = task.public
    words = task.signature.vocabulary
    found: TaskJson = {
        "name": task.name,
        "kind": task.signature.kind,
        "classes": list(task.classes),
        "clients": len(task.clients),
        "partition": task.partition,
        "samples": [] if hide_sites else [len(data) for data in task.clients],
        "class_counts": [] if hide_sites else task.class_counts().tolist(),
        "test": len(task.test),
        "public": None
        if public is None
        else {"samples": len(public), "bytes": public.bytes, "source": public.source},
        "vocabulary": {"size": words, "bytes": len(task.vocabulary_frame)} if words else None,
    }
    if task.client_names and not hide_sites:
        found["client_names"] = list(task.client_names)
    if task.own_tests and not hide_sites:
        found["own_tests"] = [len(data) for data in task.own_tests]
    return found


def arm_json(arm: ReadyArm, run: ArmRun, status: Status, error: str | None) -> ArmJson:
    """Return one arm: what it was, each round, and its bytes."""
    server = arm.server_model()
    rounds = [round_json(run, record) for record in run.records]
    for entry in [one for one in rounds if "sites" in one][:-1]:
        del entry["sites"]  # of thousands of clients and many rounds; events.jsonl has them all
    found: ArmJson = {
        "name": arm.name,
        "method": arm.config.method,
        "codec": codecs.title(arm.config.codec or arm.method.codec),
        "seed": arm.seed,
        "status": status,
        "error": error,
        "server_model": None if server is None else server[0],
        "client_models": list(arm.config.models.clients) if arm.method.clients_use_models else [],
        "parameters": arm.parameters(),
        "rounds": rounds,
        "bytes_setup": run.ledger.setup,
        "bytes_public": run.ledger.public,
        "bytes_total": run.ledger.total,
        "bytes_transport": sum(one.carried.get(way, 0) for one in run.records for way in ("up", "down")),
    }
    if arm.liars and not arm.evaluate.hide_sites:
        found["liars"] = list(arm.liars)
    privacy = privacy_json(arm, run, status)
    if privacy is not None:
        found["privacy"] = privacy
    reliability = mean_reliability(run.records)
    if reliability:
        found["reliability"], found["distrusted"] = reliability, distrusted(reliability)
    if all("multiply_adds" in one for one in rounds):
        found["multiply_adds"] = sum(one["multiply_adds"] for one in rounds)
        found["memory"] = max((one["memory"] for one in rounds), default=0)
    crossed = [one.measured["evaluation"] for one in run.records if "evaluation" in one.measured]
    if crossed:
        found["bytes_evaluation"] = sum(one["up"] + one["down"] for one in crossed)
    return found


def privacy_json(arm: ReadyArm, run: ArmRun, status: Status) -> PrivacyJson | None:
    """Return what each client has spent of its privacy so far, or None for an arm without noise."""
    mechanism = arm.mechanism
    if mechanism is None:
        return None
    failed = run.round + 1 if status == "failed" and run.round < arm.rounds else None
    epsilons = [math.ceil(epsilon * 1e4) / 1e4 for epsilon in spent_epsilons(arm, run.records, failed)]
    found: PrivacyJson = {
        "mechanism": mechanism.kind,
        "unit": mechanism.unit,
        "against": mechanism.against,
        "delta": mechanism.delta,
        "most": max(epsilons, default=0.0),
    }
    if not arm.evaluate.hide_sites:
        found["epsilon"] = {str(client): epsilon for client, epsilon in enumerate(epsilons)}
    return found


def round_json(run: ArmRun, record: RoundRecord) -> RoundJson:
    """Return one round, its bytes and multiply-adds summed over clients."""
    kinds = {
        "up": run.ledger.kinds(record.round, "up"),
        "down": run.ledger.kinds(record.round, "down"),
    }
    found: RoundJson = {
        "round": record.round,
        "bytes_up": sum(kinds["up"].values()),
        "bytes_down": sum(kinds["down"].values()),
        "seconds": round(record.seconds, 4),
        "kinds": kinds,
        "clients": record.clients,
        "dropped": record.dropped,
        "missing": record.missing,
        "transport": record.carried,
        "views": record.views,
    }
    if record.multiply_adds is not None and record.memory is not None:
        found["multiply_adds"], found["memory"] = sum(record.multiply_adds), max(record.memory, default=0)
    if record.stacked:
        found["stacked"] = record.stacked
    if record.reliability:
        found["reliability"] = record.reliability
    found.update(record.measured)  # type: ignore[typeddict-item]  # its keys are among those of a round
    return found
