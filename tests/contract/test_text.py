"""Every method on texts: each row of the contract's table, played on news articles."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fedistill import parse
from fedistill.config.schema import Experiment
from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task
from fedistill.data.task import Task
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import client_state
from fedistill.federation.history import ArmRun
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.setup import start_run
from fedistill.methods.base import AnyState
from fedistill.methods.registry import METHODS
from fedistill.state import encode_state, to_plain
from helpers.method_rows import FAMILIES, ROWS, WIDTHS, Row, each
from helpers.runs import run_serially, views_of

CLIENTS = 3
FOR_TEXTS = [row for row in ROWS if METHODS[row.method].needs.takes("text")]
ONE = {"clients": ["bag"], "server": "bag"}
ONE_WIDTH = {"clients": ["bag@48", "textcnn@48"], "server": "bag@48"}
MIXED = {"clients": ["bag", "textcnn"], "server": "transformer-s"}


@each(FOR_TEXTS, everyday=FAMILIES)
def test_it_works_on_texts(row: Row) -> None:
    arm, start, run, first = played(row)
    method = arm.method
    exchanges = method.uplink is not None
    for record in run.records:
        up, down = (
            sum(entry.bytes for entry in record.traffic if entry.direction == way) for way in ("up", "down")
        )
        due = exchanges and not (method.one_shot and record.round > 1)
        assert (up > 0) == due
        # Before round 1 some have nothing to say.
        assert (down > 0) == due or record.round == 1
        assert set(record.views) == views_of(method)
    clients = {client: client_state(arm, client, saved) for client, saved in run.clients.items()}
    assert all(finite(to_plain(state)) for state in (run.server, *clients.values()))
    if exchanges or not method.clients_work:
        assert encode_state(to_plain(run.server)) != encode_state(to_plain(start))
    # Heads alone are less than a twentieth of the weights: word vectors must have moved.
    if method.has_server_model:
        assert moved(start.model.weights, run.server.model.weights) > 0.1
    if method.has_client_models:
        assert list(clients) == list(range(CLIENTS))
        assert all(moved(first[client], state.model.weights) > 0.1 for client, state in clients.items())


LEARNING: dict[str, Any] = {
    "rounds": 6,
    "task": {
        "name": "bbc-news",
        "clients": 4,
        "limit": 600,
        "public": 300,
        "text": {"length": 32, "vocabulary": 2000},
    },
    "train": {"epochs": 4, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.01}},
    "evaluate": {"every": 6},
}
SMALL = {"clients": ["bag", "bag@32"], "server": "bag@32"}
CHANCE, MARGIN = 0.2, 0.3
# Of labels without shades a server learns more slowly.
MARGINS = {"voting": 0.2, "cfd": 0.15}


@cache
def news(task: str) -> Task:
    """Articles of one setting, built once for all methods."""
    return build_task(TaskConfig.model_validate_json(task), seed=0)


def ready(experiment: Experiment) -> ReadyArm:
    return ReadyArm.of(experiment.arms[0], experiment, news(experiment.task.model_dump_json()))


@each(FOR_TEXTS, everyday=("fedavg", "dsfl", "voting", "fedproto", "naive-bayes"))
def test_it_learns_from_texts(row: Row) -> None:
    """Unlike small models, of the same width, in the view that each method is held to on digits."""
    chosen = SMALL if row.mixes or row.refusal == WIDTHS else ONE
    arms = [{"method": row.method, **row.settings_for_texts}]
    experiment = parse({**LEARNING, "models": chosen, "arms": arms}, "test")
    arm = ready(experiment)
    run = run_serially(experiment, arm)
    assert run.records[-1].views[row.learns[0]] >= CHANCE + MARGINS.get(row.method, MARGIN)


def played(row: Row) -> tuple[ReadyArm, AnyState, ArmRun, dict[int, Tensor]]:
    """The arm, the server's state before round 1, the run after round 2, clients' weights in between."""
    experiment = parse(
        {
            "rounds": 2,
            "task": {
                "name": "bbc-news",
                "clients": CLIENTS,
                "limit": 60,
                "public": 40,
                "text": {"length": 16, "vocabulary": 200},
            },
            "models": models(row),
            "train": {"batch_size": 8, "optimizer": {"name": "adam", "lr": 0.003}},
            "arms": [{"method": row.method, **row.settings_for_texts}],
        },
        "test",
    )
    arm = ready(experiment)
    run = start_run(arm)
    start = run.server
    with SerialExecutor(experiment, arm.task) as executor:
        play_round(run, arm, executor)
        between = {client: client_state(arm, client, saved) for client, saved in run.clients.items()}
        play_round(run, arm, executor)
    first = {client: state.model.weights for client, state in between.items() if arm.method.has_client_models}
    return arm, start, run, first


def models(row: Row) -> dict[str, Any]:
    """Unlike ones where the method takes them."""
    if row.mixes:
        return MIXED
    return ONE_WIDTH if row.refusal == WIDTHS else ONE


def moved(before: Tensor, after: Tensor) -> float:
    """Share of the weights that are not what they were."""
    return float((before != after).float().mean())


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
