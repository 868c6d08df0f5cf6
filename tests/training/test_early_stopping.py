"""Early stopping against a loop that tries every number of epochs; what it holds out, and what it costs."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.config.training import EarlyStopping, OptimizerConfig
from fedistill.experiment.preflight import examine
from fedistill.models.registry import build_model
from fedistill.models.signature import Signature
from fedistill.state import encode_state
from fedistill.testing.runs import ready, small_experiment
from fedistill.training.cost import counting
from fedistill.training.early_stopping import FEWEST, Validation, draw_validation, held_out
from fedistill.training.loop import fit, predict
from fedistill.training.model_state import flatten
from fedistill.training.optimizers import Optimizer, make_optimizer

DIGITS = Signature("image", (1, 4, 4), 3, 0)
SAMPLES, BATCH = 40, 8
FORWARD = 16 * 64 + 64 * 3
BACKWARD = FORWARD + 64 * 3
OPTIMIZER = OptimizerConfig(name="sgd", lr=0.3, momentum=0.9)


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Pure noise, so that training soon gains nothing on other samples."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 256, (SAMPLES, *DIGITS.shape), generator=generator).to(torch.uint8)
    return inputs, torch.randint(0, 3, (SAMPLES,), generator=generator)


def drawn(labels: Tensor, settings: EarlyStopping) -> Validation:
    found = draw_validation(
        SAMPLES,
        settings,
        lambda logits, at: cross_entropy(logits, labels[at]),
        torch.Generator().manual_seed(1),
    )
    assert found is not None
    return found


def trained(
    inputs: Tensor, labels: Tensor, epochs: int, validation: Validation | None = None
) -> tuple[Any, Optimizer]:
    model = build_model("mlp-s", DIGITS, 0, 0)
    optimizer = make_optimizer(OPTIMIZER, model)
    fit(
        model,
        optimizer,
        inputs,
        lambda logits, at: cross_entropy(logits, labels[at]),
        epochs=epochs,
        batch_size=BATCH,
        generator=torch.Generator().manual_seed(2),
        validation=validation,
    )
    return model, optimizer


def losses(inputs: Tensor, labels: Tensor, epochs: int, found: Validation) -> list[float]:
    """The loss on what is held out after each number of epochs, each trained anew."""
    values = []
    for count in range(1, epochs + 1):
        model, _ = trained(inputs[found.training], labels[found.training], count)
        logits = predict(model, inputs[found.held_out])
        values.append(float(cross_entropy(logits, labels[found.held_out])))
    return values


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("patience", [1, 3])
def test_it_ends_where_trying_every_number_of_epochs_would_end(seed: int, patience: int) -> None:
    """With model and optimizer as after the best epoch, to the bit."""
    inputs, labels = data(seed)
    found = drawn(labels, EarlyStopping(share=0.25, patience=patience))
    values = losses(inputs, labels, 8, found)
    best = 0
    for epoch, value in enumerate(values):
        if value < values[best]:
            best = epoch
        elif epoch - best >= patience:
            break
    assert best < 7
    with counting() as counter:
        model, optimizer = trained(inputs, labels, 8, found)
    same, other = trained(inputs[found.training], labels[found.training], best + 1)
    assert torch.equal(flatten(model), flatten(same))
    assert encode_state(optimizer.state()) == encode_state(other.state())
    ran = min(best + 1 + patience, 8)
    assert counter.cost.multiply_adds == ran * (30 * (FORWARD + BACKWARD) + 10 * FORWARD)


def test_the_copy_of_the_best_epoch_is_in_the_memory() -> None:
    inputs, labels = data(0)
    found = drawn(labels, EarlyStopping(share=0.25))
    cost = []
    for validation in (None, found):
        with counting() as counter:
            trained(inputs, labels, 2, validation)
        cost.append(counter.cost.memory)
    assert cost[1] - cost[0] == 2 * 4 * (16 * 64 + 64 + 64 * 3 + 3)  # weights and momentum


def test_without_any_gain_it_keeps_training_until_the_patience_ends() -> None:
    """The first epoch counts as the best: what a round starts from is not gone back to."""
    inputs, labels = data(0)
    ended = []

    def worse(logits: Tensor, at: Tensor) -> Tensor:
        ended.append(len(at))
        return torch.tensor(float(len(ended)))

    found = drawn(labels, EarlyStopping(share=0.25, patience=2))
    model, _ = trained(inputs, labels, 9, Validation(found.training, found.held_out, worse, 2))
    assert ended == [10] * 3
    assert torch.equal(flatten(model), flatten(trained(inputs[found.training], labels[found.training], 1)[0]))


def test_a_number_of_steps_is_judged_at_each_pass_and_at_the_end() -> None:
    inputs, labels = data(0)
    modes: list[bool] = []
    model = build_model("mlp-s", DIGITS, 0, 0)

    def better(logits: Tensor, at: Tensor) -> Tensor:
        modes.append(model.training)
        return torch.tensor(-float(len(modes)))

    found = drawn(labels, EarlyStopping(share=0.25))
    fit(
        model,
        make_optimizer(OPTIMIZER, model),
        inputs,
        lambda logits, at: cross_entropy(logits, labels[at]),
        epochs=1,
        steps=10,
        batch_size=BATCH,
        generator=torch.Generator().manual_seed(2),
        validation=Validation(found.training, found.held_out, better, 2),
    )
    assert modes == [False] * 3  # after 4, 8 and 10 batches


@given(samples=st.integers(1, 300), share=st.floats(0.01, 0.5), seed=st.integers(0, 9))
def test_what_is_held_out_is_drawn_and_apart(samples: int, share: float, seed: int) -> None:
    settings = EarlyStopping(share=share)
    found = draw_validation(
        samples, settings, lambda logits, at: logits.sum(), torch.Generator().manual_seed(seed)
    )
    count = held_out(samples, settings)
    if found is None:
        assert count == 0
        assert round(share * samples) < FEWEST
        return
    assert len(found.held_out) == count == round(share * samples)
    assert sorted([*found.held_out.tolist(), *found.training.tolist()]) == list(range(samples))


def found(method: str = "fedavg", **changes: Any) -> list[str]:
    tables = {
        "rounds": 2,
        "task": {"clients": 3, "limit": 90, "public": 30, "partition": {"kind": "iid"}},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
        "train": {"epochs": 3, "early_stopping": {"share": 0.2}},
        "arms": [{"method": method}],
    }
    experiment = small_experiment({**tables, **changes})
    arm = ready(experiment)
    return [str(one) for one in examine(experiment, arm.task, [arm]) if one.level == "warning"]


def test_clients_with_too_few_samples_are_named_once() -> None:
    """Twenty samples a client: of a tenth of them nothing could be told."""
    assert found() == []
    few = found(train={"epochs": 3, "early_stopping": {"share": 0.1}})
    assert len(few) == 1
    assert "too few samples for early stopping, of which 5 would be held out" in few[0]
    assert few[0].endswith("train to the end on all: 0, 1, 2: raise early_stopping.share, or leave it out")
    assert found("ridge", train={"early_stopping": {"share": 0.1}}) == []


def test_one_epoch_is_warned_of() -> None:
    assert (
        "early stopping never ends a training of one epoch"
        in found(train={"early_stopping": {"share": 0.2}})[0]
    )
