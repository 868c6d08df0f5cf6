"""What only a CUDA device can show: `python -m pytest -m cuda` where there is one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedistill.config.schema import RuntimeConfig
from fedistill.config.training import OptimizerConfig
from fedistill.models.checks import check_model
from fedistill.models.registry import build_model, model_names
from fedistill.models.signature import Signature
from fedistill.rng import scoped
from fedistill.testing.methods import (
    MethodCase,
    resumed_ends_as_never_stopped,
    same_seed_same_bits,
    worker_processes_end_in_the_same_bits,
)
from fedistill.training.devices import computing
from fedistill.training.loop import fit, predict
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import make_optimizer
from helpers.method_rows import ROWS, Row

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
CUDA = RuntimeConfig(device="cuda")
ON_CUDA: dict[str, Any] = {"runtime": {"device": "cuda"}}
IMAGES = Signature("image", (1, 16, 16), 4, vocabulary=0)
TEXTS = Signature("text", (12,), 4, vocabulary=50)
LADDER = [(kind, name) for kind in (IMAGES, TEXTS) for name in model_names(kind.kind)]
by_model = pytest.mark.parametrize(("signature", "name"), LADDER, ids=lambda one: str(one))
TOLERANCE = 2e-3
"""Between the weights that a training of ten steps gives here and there: float32, in other orders."""


def samples_for(signature: Signature) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (80,), generator=draws)
    if signature.kind == "image":
        return torch.randint(256, (80, *signature.shape), dtype=torch.uint8, generator=draws), labels
    return torch.randint(1, 50, (80, *signature.shape), dtype=torch.int32, generator=draws), labels


def trained(signature: Signature, name: str, dropout: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and logits after ten steps."""
    inputs, labels = samples_for(signature)
    model = build_model(name, signature, seed=0, client=0)
    for part in model.modules():
        if not dropout and isinstance(part, nn.Dropout | nn.MultiheadAttention):
            setattr(part, "p" if isinstance(part, nn.Dropout) else "dropout", 0.0)
    optimizer = make_optimizer(OptimizerConfig(lr=0.05, momentum=0.9).resolved("image"), model)
    with scoped(0, "layers"):
        fit(
            model,
            optimizer,
            inputs,
            lambda logits, at: cross_entropy(logits, labels[at]),
            epochs=2,
            batch_size=16,
            generator=torch.Generator().manual_seed(1),
        )
    return flatten(model), predict(model, inputs)


@by_model
def test_training_there_is_training_here_but_for_rounding(signature: Signature, name: str) -> None:
    here = trained(signature, name, dropout=False)
    with computing(CUDA):
        there = trained(signature, name, dropout=False)
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)


@by_model
def test_training_there_has_the_same_bits_each_time(signature: Signature, name: str) -> None:
    """Dropout draws from the named stream, and no algorithm depends on the order of threads."""
    with computing(CUDA):
        check_model(name, signature)
        once, again = (trained(signature, name, dropout=True) for _ in range(2))
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize(
    "check",
    [same_seed_same_bits, worker_processes_end_in_the_same_bits, resumed_ends_as_never_stopped],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_contract_of_bits_holds_there(row: Row, check: Callable[[MethodCase], None]) -> None:
    check(MethodCase(row.method, row.models, row.settings, ON_CUDA))


@pytest.mark.parametrize("method", ["fedavg", "dsfl"])
def test_accuracies_there_are_those_here_within_some_points(method: str) -> None:
    case = MethodCase(method, {"clients": ["mlp-s"], "server": "mlp-s"})
    here, there = (case.run(**changes)[1].records[-1].views for changes in ({}, ON_CUDA))
    assert here.keys() == there.keys()
    assert all(abs(here[view] - there[view]) < 0.05 for view in here)


def test_clients_leave_the_memory_of_the_device() -> None:
    case = MethodCase("dsfl", {"clients": ["cnn-s"], "server": "cnn-s"})
    before = torch.cuda.memory_allocated()
    case.run(**ON_CUDA)
    assert torch.cuda.memory_allocated() - before < 2**20


def test_an_operation_without_a_deterministic_algorithm_is_refused_or_allowed() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 4))
    optimizer = make_optimizer(OptimizerConfig(lr=0.05).resolved("image"), model)
    inputs, labels = samples_for(IMAGES)
    leading = nn.Sequential(nn.Conv2d(1, 1, 1), model)

    def train() -> None:
        fit(
            leading,
            optimizer,
            inputs,
            lambda logits, at: cross_entropy(logits, labels[at]),
            epochs=1,
            batch_size=16,
            generator=torch.Generator().manual_seed(1),
        )

    with computing(CUDA), pytest.raises(RuntimeError, match=r"runtime\.deterministic = false"):
        train()
    with computing(CUDA.model_copy(update={"deterministic": False})):
        train()
