"""FedAvg on models whose state is more than float parameters, against a loop over whole state dicts."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.federation.arm import ReadyArm
from fedistill.models.registry import build_model
from fedistill.rng import SERVER, scoped, stream
from helpers.runs import finished

LR, MOMENTUM, BATCH, EPOCHS, ROUNDS = 0.05, 0.5, 16, 2, 3


def played(name: str, **arm: Any) -> tuple[str, ReadyArm, Any]:
    model = f"helpers.odd_models:{name}"
    ready, run = finished(
        {
            "rounds": ROUNDS,
            "task": {"name": "digits", "clients": 3, "limit": 300},
            "models": {"clients": [model], "server": model},
            "train": {
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "optimizer": {"lr": LR, "momentum": MOMENTUM},
            },
            "arms": [{"method": "fedavg", **arm}],
        }
    )
    return model, ready, run


def plain_fedavg(arm: ReadyArm, name: str) -> dict[str, Tensor]:
    """Every entry of the state dict: means by samples, and of integers the largest."""
    state = build_model(name, arm.task.signature, seed=0, client=SERVER).state_dict()
    for round in range(1, ROUNDS + 1):
        received = []
        for client, data in enumerate(arm.task.clients):
            model = build_model(name, arm.task.signature, seed=0, client=0).train()
            model.load_state_dict(state)
            optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
            generator = stream(0, "private", client, round)
            with scoped(0, "layers", client, round):
                for _ in range(EPOCHS):
                    for index in torch.randperm(len(data), generator=generator).split(BATCH):
                        optimizer.zero_grad()
                        cross_entropy(model(data.samples[index] / 127.5 - 1), data.labels[index]).backward()
                        optimizer.step()
            received.append((model.state_dict(), len(data)))
        total = sum(samples for _, samples in received)
        state = {
            key: sum(weights[key] * (samples / total) for weights, samples in received)
            if value.is_floating_point() or value.is_complex()
            else torch.stack([weights[key] for weights, _ in received]).amax(dim=0)
            for key, value in state.items()
        }
    return state


@pytest.mark.parametrize(
    "name",
    [
        "integer_buffer",
        "boolean_buffer",
        "complex_buffer",
        "complex_weights",
        "running_mean",
        "cumulative",
        "batch_norm",
        "spectral_norm",
        "late",
        "tied",
        "logits",
    ],
)
def test_fedavg_is_the_plain_loop_over_state_dicts(name: str) -> None:
    model, arm, run = played(name)
    assert all(len(data) % BATCH != 1 for data in arm.task.clients)
    module = build_model(model, arm.task.signature, seed=0, client=0)
    found = run.server.model.load_into(module).state_dict()
    expected = plain_fedavg(arm, model)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("codec", ["stc", "qsgd", "fp16", "low-rank"])
def test_no_codec_changes_the_statistics_of_batch_norm(codec: str) -> None:
    """They cross as fp32: a variance that is rounded, or sent as a difference, may become negative."""
    model, arm, run = played("batch_norm", codec=codec)
    module = build_model(model, arm.task.signature, seed=0, client=0)
    state = run.server.model.load_into(module).state_dict()
    assert (state["1.running_var"] > 0).all()
    assert all(value.isfinite().all() for value in state.values())
