"""`runtime.server_threads`: what the server computes alone has more threads, and nothing else has."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fedistill.federation.local_executor import ProcessExecutor
from fedistill.models.residual import ResidualMlp
from fedistill.testing.runs import bits, finish, require_same
from helpers.runs import finished, ready

SERIAL, TWO = {"kind": "serial"}, {"kind": "serial", "server_threads": 2}


def table(arm: dict[str, Any], runtime: dict[str, Any]) -> dict[str, Any]:
    """Clients that are perceptrons, and a server with convolutions, unless the method has another net."""
    return {
        "rounds": 3,
        "task": {"name": "digits", "clients": 3, "limit": 60, "public": 20},
        "models": {"clients": ["mlp-s"], "server": "mlp-s" if arm["method"] == "fedgkt" else "cnn-s"},
        "train": {"batch_size": 16},
        "runtime": runtime,
        "arms": [arm],
    }


@contextmanager
def threads_in_training() -> Iterator[dict[str, set[int]]]:
    """Note with how many threads models are trained, by side."""
    found: dict[str, set[int]] = {"server": set(), "clients": set()}

    def note(module: nn.Module, given: Any) -> None:
        if module.training and torch.is_grad_enabled() and hasattr(module, "head"):
            convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
            side = "server" if convolves or isinstance(module, ResidualMlp) else "clients"
            found[side].add(torch.get_num_threads())

    handle = register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("method", "server", "clients"),
    [
        *((method, {2}, {1}) for method in ("dsfl", "fed-et", "fedgems", "fedgkt")),
        ("server-alone", {2}, set()),
        # The server also trains models of the clients' architecture.
        *((method, {2}, {1, 2}) for method in ("feddf", "tally-like")),
        # The starts from which both sides go on are computed alike.
        ("bridge", {1, 2}, {1}),
    ],
)
def test_the_server_alone_has_more_threads(method: str, server: set[int], clients: set[int]) -> None:
    before = torch.get_num_threads()
    with threads_in_training() as found:
        finished(table({"method": method}, TWO))
    assert found == {"server": server, "clients": clients}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("arm", [{"method": "dsfl"}, {"method": "bridge"}, {"method": "tally-like"}])
def test_results_do_not_depend_on_where_clients_are(arm: dict[str, Any]) -> None:
    """What both sides compute alike is computed with one thread at both."""
    _, serial = finished(table(arm, TWO))
    experiment, ready_arm = ready(table(arm, {**TWO, "kind": "processes", "workers": 2}))
    with ProcessExecutor(2, experiment, ready_arm.task) as executor:
        require_same(finish(ready_arm, executor), bits(serial), "in two processes as in one")


def test_results_are_those_of_one_thread_but_for_rounding() -> None:
    _, one = finished(table({"method": "dsfl"}, SERIAL))
    _, two = finished(table({"method": "dsfl"}, TWO))
    assert two.ledger == one.ledger
    assert bits(two)["the clients' states"] == bits(one)["the clients' states"]
    torch.testing.assert_close(two.server.model.weights, one.server.model.weights, rtol=1e-3, atol=2e-5)
