"""``results.json``: the outcome of a run, in the shape that other programs rely on.

Bytes are integers summed over clients. ``bytes_total`` is all rounds and set-up, without public data;
``bytes_public`` is one copy of the public set for each client that needs one.
"""

import platform
from importlib.metadata import version
from typing import Any

from fedistill.communication.codecs import registry as codecs
from fedistill.config.link import PROFILES, Link, LinkUse, round_seconds
from fedistill.data.task import Task
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun, RoundRecord

SCHEMA = 1


def results(command: str, task: Task, arms: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of ``results.json``."""
    packages = ("torch", "numpy", "datasets", "flwr-datasets")
    return {
        "schema": SCHEMA,
        "version": version("fedistill"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "command": command,
        "task": describe_task(task),
        "arms": arms,
    }


def describe_task(task: Task) -> dict[str, Any]:
    """Samples by client and class, the public set and the vocabulary."""
    public = task.public
    words = task.signature.vocabulary
    return {
        "name": task.name,
        "kind": task.signature.kind,
        "classes": list(task.classes),
        "clients": len(task.clients),
        "partition": task.partition,
        "samples": [len(data) for data in task.clients],
        "class_counts": task.class_counts().tolist(),
        "test": len(task.test),
        "public": None
        if public is None
        else {"samples": len(public), "bytes": public.bytes, "source": public.source},
        "vocabulary": {"size": words, "bytes": len(task.vocabulary_frame)} if words else None,
    }


def describe_arm(arm: ReadyArm, run: ArmRun, status: str, error: str | None) -> dict[str, Any]:
    """One arm: what it was, each round, and its bytes."""
    works = arm.method.clients_work
    server = arm.server_model()
    return {
        "name": arm.name,
        "method": arm.config.method,
        "codec": codecs.title(arm.config.codec or arm.method.codec),
        "seed": arm.seed,
        "status": status,
        "error": error,
        "server_model": None if server is None else server[0],
        "client_models": list(arm.config.models.clients) if works else [],
        "parameters": arm.parameters(),
        "rounds": [describe_round(run, record) for record in run.records],
        "bytes_setup": run.ledger.setup,
        "bytes_public": run.ledger.public,
        "bytes_total": run.ledger.total,
        "bytes_transport": sum(one.carried.get(way, 0) for one in run.records for way in ("up", "down")),
    }


def describe_round(run: ArmRun, record: RoundRecord) -> dict[str, Any]:
    """One round, its bytes summed over clients."""
    kinds = {
        "up": run.ledger.kinds(record.round, "up"),
        "down": run.ledger.kinds(record.round, "down"),
    }
    return {
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


def link_times(link: Link, records: list[RoundRecord]) -> list[float]:
    """Cumulative simulated seconds after each round, every client behind a link of its own."""
    total, times = 0.0, []
    for record in records:
        sent = {client: [0, 0] for client in record.clients}
        for entry in record.traffic:
            sent[entry.client][entry.direction == "up"] += entry.bytes
        exchanges = [
            LinkUse(down, work, up) for (down, up), work in zip(sent.values(), record.work, strict=True)
        ]
        total += round_seconds(link, exchanges, record.server_seconds)
        times.append(total)
    return times


def choices(link: str | Link) -> tuple[str, dict[str, Link]]:
    """Return the first choice of link by name, and all links of the report."""
    if isinstance(link, str):
        return link, dict(PROFILES)
    return link.title, {link.title: link, **PROFILES}
