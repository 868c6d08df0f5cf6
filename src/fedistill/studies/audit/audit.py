"""Audits a run: plays it again, attacks its clients with what their server had, and keeps the figures.

The folder of the run gains one file, ``audit.json``, written after each arm; nothing else in it is changed.
An audit that was stopped continues with the arms that it lacks.
"""

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

from fedistill.config.schema import Experiment
from fedistill.data.task import Task
from fedistill.errors import ExperimentError, TrainingError, nearest
from fedistill.experiment.folder_lock import alone_in
from fedistill.experiment.results import ArmJson
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.runner import check_data, prepare
from fedistill.federation import local_executor
from fedistill.federation.arm import ReadyArm
from fedistill.federation.executor import Executor, check_main_guard
from fedistill.federation.history import RoundRecord
from fedistill.privacy.mechanisms import NoisyVotes
from fedistill.rng import numpy_stream
from fedistill.state import write_file
from fedistill.studies.audit import candidates, label_inference, reconstruction, roc
from fedistill.studies.audit.arm_evidence import ArmEvidence, Settings
from fedistill.studies.audit.audit_json import (
    NAME,
    SCHEMA,
    ArmAuditJson,
    AuditJson,
    DistancesJson,
    EstimateJson,
    MeansJson,
    MembershipJson,
    SharesJson,
    read_audit,
)
from fedistill.studies.audit.client_audit import Attack, ClientFindings, audit_client
from fedistill.studies.audit.replay import replay, spread

_PACKAGES = ("torch", "numpy")


class Watcher(Protocol):
    """Receives how an audit goes on."""

    def replayed(self, arm: str, record: RoundRecord, rounds: int) -> None: ...
    def audited(self, arm: str, client: int, done: int, clients: int) -> None: ...


def audit(path: Path, settings: Settings, arms: Sequence[str], command: str, watcher: Watcher) -> AuditJson:
    """Audit arms of the run in a folder; return the content of audit.json.

    Args:
        arms: their names; by default, all that have played a round.
        command: what was typed, for audit.json.

    Raises:
        ExperimentError: there is no run that can be audited in the folder, or its replay is another run.
        RuntimeFailure, KeyboardInterrupt: the machine failed, or the user stopped it; arms that are done are
            kept.
    """
    check_main_guard()
    folder = RunFolder.open(path)
    experiment = folder.experiment()
    if experiment.seeds is not None:
        found = sorted(one.name for one in path.glob("seed-*"))
        raise ExperimentError(f"{path} has several seeds: audit the folder of one, {', '.join(found)}")
    if folder.on_network:
        raise ExperimentError(
            f"{path} was run on a network: what its clients did cannot be replayed without their sites; audit"
            " a run of the same experiment on this machine (fedistill compare)"
        )
    results = read_results(path)
    assert "tasks" not in results  # those of several seeds
    by_name = {arm["name"]: arm for arm in results["arms"] if arm["rounds"]}
    if not by_name:
        raise ExperimentError(f"{path}: no arm has played a round, so there is nothing to audit")
    for name in arms:
        if name not in by_name:
            raise ExperimentError(f"--arm {name}: the arms are {', '.join(by_name)}.{nearest(name, by_name)}")
    wanted = [name for name in by_name if name in arms or not arms]
    digest = hashlib.blake2b((path / "results.json").read_bytes(), digest_size=16).hexdigest()
    with alone_in(path):
        kept = _continued(path, digest, settings, command)
        missing = [name for name in wanted if name not in [arm["name"] for arm in kept["arms"]]]
        if missing:
            task, ready = prepare(experiment, path)
            check_data(folder, task)
            with local_executor.start_executor(experiment, task) as executor:
                for arm in [one for one in ready if one.name in missing]:
                    result = by_name[arm.name]
                    kept["arms"].append(
                        _audit_arm(folder, experiment, arm, result, executor, settings, watcher)
                    )
                    kept["arms"].sort(key=lambda one: list(by_name).index(one["name"]))
                    write_file(path / NAME, json.dumps(kept, indent=1).encode())
    return {**kept, "arms": [arm for arm in kept["arms"] if arm["name"] in wanted]}


def _continued(path: Path, digest: str, settings: Settings, command: str) -> AuditJson:
    """Return the audit in the folder, or an empty one if there is none of this run with these settings."""
    new: AuditJson = {
        "schema": SCHEMA,
        "version": version("fedistill"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "command": command,
        "results": digest,
        "settings": asdict(settings),
        "arms": [],
    }
    before = read_audit(path)
    return {**before, "command": command} if before and _made_by(before) == _made_by(new) else new


def _made_by(content: AuditJson) -> tuple[str, dict[str, str], str, dict[str, int]]:
    """Return all that the figures of an arm depend on."""
    return content["version"], content["versions"], content["results"], content["settings"]


def _audit_arm(
    folder: RunFolder,
    experiment: Experiment,
    arm: ReadyArm,
    result: ArmJson,
    executor: Executor,
    settings: Settings,
    watcher: Watcher,
) -> ArmAuditJson:
    started = time.perf_counter()
    honest = [info.id for info in arm.federation.clients if info.id not in arm.liars]
    clients = spread(honest, settings.clients)
    rounds = len(result["rounds"])
    replayed = replay(
        folder,
        arm,
        result,
        executor,
        clients,
        settings.rounds,
        lambda record: watcher.replayed(arm.name, record, rounds),
    )
    evidence = ArmEvidence(replayed, settings)
    notes, findings = [], dict[int, ClientFindings]()
    for place, client in enumerate(clients, start=1):
        try:
            findings[client] = audit_client(evidence, client)
        except TrainingError as error:
            notes.append(f"client {client}: a shadow failed: {error}")
        watcher.audited(arm.name, client, place, len(clients))
    caution = candidates.warning(experiment, arm.task)
    membership = _membership(findings, settings.seed)
    if caution and membership:
        notes.append(caution)
    if arm.secure_sums is not None:
        notes.append("secure sums: the server has no client's message, and no attack here uses sums")
    if isinstance(arm.privacy, NoisyVotes):
        notes.append("noisy-votes trusts the server, which is whose view is audited here")
    if arm.secure_sums is None and not any(evidence.said.values()):
        notes.append("no attack here can use its messages, which does not mean that they reveal nothing")
    notes += [
        f"{one['asked']}: the range of the blind control leaves 0.5 out. That is chance once in twenty times,"
        " and more often where clients are few; else members and non-members differ in more than membership,"
        " and its other scores are not to be trusted"
        for one in membership
        if one["score"] == "blind" and not one["auc"]["low"] <= 0.5 <= one["auc"]["high"]
    ]
    return {
        "name": arm.name,
        "method": arm.config.method,
        "codec": result["codec"],
        "rounds": rounds,
        "clients": clients,
        "membership": membership,
        "label_shares": _label_shares(evidence, arm.task),
        "class_means": _class_means(findings),
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _membership(findings: Mapping[int, ClientFindings], seed: int) -> list[MembershipJson]:
    attacks = dict.fromkeys(attack for one in findings.values() for attack in one.scored)
    return [_attack(attack, findings, seed) for attack in attacks]


def _attack(attack: Attack, findings: Mapping[int, ClientFindings], seed: int) -> MembershipJson:
    scored = roc.Scored.join([one.scored[attack] for one in findings.values() if attack in one.scored])
    found = roc.roc(scored, numpy_stream(seed, "audit ranges"))
    asked, score = attack
    return {
        "asked": asked,
        "score": score,
        "members": len(scored.members),
        "others": len(scored.others),
        "auc": _estimate(found.auc),
        "tpr": {f"{rate:g}": None if one is None else _estimate(one) for rate, one in found.tpr.items()},
        "points": found.points,
    }


def _label_shares(evidence: ArmEvidence, task: Task) -> list[SharesJson]:
    counts = task.class_counts().double()
    truth = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).float()
    uniform = torch.full((truth.shape[1],), 1 / truth.shape[1])
    ways = dict.fromkeys(guess.how for guesses in evidence.guesses.values() for guess in guesses)
    shares: list[SharesJson] = []
    for how in ways:
        pairs = [
            (truth[client], guess.shares)
            for client, guesses in evidence.guesses.items()
            for guess in guesses
            if guess.how == how
        ]
        shares.append(
            {
                "how": how,
                "clients": len(pairs),
                **_distances(pairs),
                "uniform": _distances([(real, uniform) for real, _ in pairs]),
            }
        )
    return shares


def _distances(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> DistancesJson:
    """Return the mean distances of guesses to true shares, (truth, guess) each."""
    variations = [label_inference.total_variation(real, guess) for real, guess in pairs]
    divergences = [label_inference.divergence(real, guess) for real, guess in pairs]
    return {
        "total_variation": round(sum(variations) / len(pairs), 4),
        "divergence": round(sum(divergences) / len(pairs), 4),
    }


def _class_means(findings: Mapping[int, ClientFindings]) -> list[MeansJson]:
    found: list[MeansJson] = []
    for what in dict.fromkeys(what for one in findings.values() for what in one.means):
        compared = reconstruction.compare([one.means[what] for one in findings.values() if what in one.means])
        found.append(
            {
                "what": what,
                "means": compared.means,
                "single": compared.single,
                "error": round(compared.error, 6),
                "usual_error": round(compared.usual_error, 6),
                "gain": round(compared.gain, 4),
                "direction": round(compared.direction, 4),
            }
        )
    return found


def _estimate(found: roc.Estimate) -> EstimateJson:
    return {
        "value": round(found.value, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
    }
