"""What is measured after a round, at the server and at the clients, and the views that come of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedistill.errors import TrainingError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.federation.client_evaluation import model_frame
from fedistill.federation.evaluation import (
    Bytes,
    Evaluated,
    Measured,
    by_site,
    global_views,
    measured,
    own_views,
    views,
)
from fedistill.federation.executor import Executor, Jobs
from fedistill.federation.failures import failing_at
from fedistill.federation.ledger import SETUP_ROUND
from fedistill.federation.replies import RoundPlan
from fedistill.federation.scores import Scores
from fedistill.methods.base import AnyState


@dataclass(frozen=True)
class RoundEvaluation:
    """What an evaluation found; empty if none was due.

    Attributes:
        scores: of each client's own model, for as long as it stays the same.
    """

    views: dict[str, float]
    measured: Measured
    scores: dict[int, Scores]


def evaluate_round(
    arm: ReadyArm,
    executor: Executor,
    plan: RoundPlan,
    server: AnyState,
    clients: Mapping[int, bytes],
    known: dict[int, Scores],
) -> RoundEvaluation:
    """Take the views if they are due, or else pass on the scores of models that have not changed.

    Args:
        server: the server's state after the round.
        clients: the saved states of clients after the round.
        known: the scores of clients' models that the round has not changed.

    Raises:
        TrainingError: a model failed; with the round, and the client or the server.
    """
    due = plan.number, plan.local
    if not arm.evaluates(*due):
        return RoundEvaluation({}, {}, known)
    asked, sites, sent = arm.evaluates_clients(*due), dict[int, Scores](), Bytes(up=0, down=0)
    try:
        at_server = _server_scores(arm, executor, server, clients)
        if asked:
            known = known | _client_scores(arm, executor, clients, known)
        if arm.evaluates_at_sites(*due):
            sites, sent = _site_scores(arm, executor, server, plan.number)
    except TrainingError as error:
        raise TrainingError(error.what, f"round {plan.number}, {error.place}") from error
    of_clients = {client: known[client] for client in sorted(known)} if asked else {}
    if not (executor.private_counts_known or arm.holds_out):
        of_clients = {client: replace(scores, own={}) for client, scores in of_clients.items()}
    evaluated = Evaluated(at_server, of_clients, sites)
    found = measured(evaluated, arm.metrics)
    if arm.holds_out:
        found |= by_site(evaluated, arm.metrics, len(arm.task.clients), arm.evaluate.hide_sites)
    if sites:
        found["evaluation"] = sent
    return RoundEvaluation(_views(arm, executor, evaluated), found, known)


def _views(arm: ReadyArm, executor: Executor, evaluated: Evaluated) -> dict[str, float]:
    """Return the accuracy of each view."""
    test = torch.bincount(arm.task.test.labels, minlength=arm.task.signature.classes)
    right = [torch.tensor(scores.correct) for scores in evaluated.clients.values()]
    server = _mean([torch.tensor(scores.correct) for scores in evaluated.server])
    if arm.holds_out:
        return global_views(server, right, test) | own_views(evaluated)
    found = views(server, right, test, arm.task.class_counts()[[*evaluated.clients]])
    if not executor.private_counts_known:
        found.pop("client@own", None)
    return found


def _mean(right: list[Tensor]) -> Tensor | None:
    # The mean over one model is exact.
    return torch.stack(right).double().mean(dim=0) if right else None


def _server_scores(
    arm: ReadyArm, executor: Executor, server: AnyState, clients: Mapping[int, bytes]
) -> list[Scores]:
    """Return the scores of each of the server's models on the global test set; none if it has none."""
    if arm.method.needs.evaluation_at_clients and not executor.holds_client_states:
        return []

    def own(client: int) -> AnyState:
        return client_state(arm, client, clients.get(client, b""))

    found = []
    at_server = arm.server(SETUP_ROUND)
    with failing_at("evaluation, server"), at_server.computing():
        for name, model in arm.method.server_eval_models(server, at_server, own):
            answers = arm.answers(name, model)
            confusion = {"everywhere": answers.confusion()} if arm.asks_for_confusion else {}
            right = answers.correct_by_class().tolist()
            found.append(Scores(right, answers.values(arm.metrics), confusion=confusion))
    return found


def _client_scores(
    arm: ReadyArm, executor: Executor, clients: Mapping[int, bytes], known: Mapping[int, Scores]
) -> dict[int, Scores]:
    """Return the scores of the clients' models that are not known yet and can be reached."""
    asked = [info.id for info in arm.federation.clients if info.id not in known]
    found = executor.evaluate(arm.name, Jobs(asked, clients, [b""] * len(asked)))
    return {client: scores for client, scores in zip(asked, found, strict=True) if scores is not None}


def _site_scores(
    arm: ReadyArm, executor: Executor, server: AnyState, round: int
) -> tuple[dict[int, Scores], Bytes]:
    """Return the scores of the server's model at the clients that can be reached, and the bytes of asking."""
    frame, asked = model_frame(server.model, round), range(len(arm.task.clients))
    found = executor.evaluate(arm.name, [(client, b"", frame) for client in asked])
    sites = {client: scores for client, scores in zip(asked, found, strict=True) if scores is not None}
    up = sum(len(scores.encode()) for scores in sites.values())
    return sites, Bytes(up=up, down=len(frame) * len(sites))
