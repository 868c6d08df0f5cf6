"""The local training loop, which all methods share."""

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedistill.config.training import PREDICTION_BATCH
from fedistill.errors import TrainingError
from fedistill.training.cost import BatchCosts, counting_batches, kind_by_shapes, uncounted
from fedistill.training.devices import CPU, current_device, placed
from fedistill.training.early_stopping import BestEpoch, Validation
from fedistill.training.optimizers import Optimizer

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function from logits (b, C) and the positions (b,) of the batch's samples to a scalar."""


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    loss: Loss,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    steps: int | None = None,
    validation: Validation | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Train a model, visiting the samples in a new order each epoch.

    If a last batch of one sample would leave batch norm one value per channel, which torch refuses, that
    sample joins the batch before.

    Args:
        steps: number of batches to train on, in place of epochs; the last epoch may end early.
        validation: samples to leave out, by whose loss training ends before the last epoch, and returns to
            the best one; default: train on all.
        augment: changes a batch of the inputs before the model is trained on it.

    Raises:
        TrainingError: the loss is NaN or infinite, whereof the message says whether it was before the first
            step; or batch norm has one value per channel.
    """
    samples = len(inputs) if validation is None else len(validation.training)
    joins = _last_joins(model, inputs, samples, batch_size)
    model.train()
    done, first = 0, None
    best = None if validation is None else BestEpoch(validation)
    costs = BatchCosts(
        None if augment is not None else kind_of_loop(model, inputs, loss, optimizer.kind, best is not None)
    )
    validating = BatchCosts()
    with placed(model, optimizer), counting_batches():
        places = torch.arange(samples) if validation is None else validation.training
        in_all = epochs * len(_batches(places, batch_size, joins)) if steps is None else steps
        drawn = drawn_batches(places, epochs, batch_size, steps, generator, joins=joins)
        for epoch, batches in enumerate(drawn):
            total = torch.zeros(())
            for index in batches:
                with costs.step(len(index), model, optimizer, keeps_best=best is not None):
                    optimizer.zero_grad()
                    value = loss(outputs(model, inputs, index, augment), index)
                    value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                    with uncounted():
                        optimizer.step(done, in_all)
                done += 1
                first = value.detach() if first is None else first
                total += value.detach().to(CPU)
            _check_finite(first, total, epoch)
            if best is not None and best.ends(
                _mean_loss(model, inputs, best.validation, validating), model, optimizer
            ):
                break
        if best is not None:
            best.restore(model, optimizer)


def drawn_batches(
    places: Tensor,
    epochs: int,
    batch_size: int,
    steps: int | None,
    generator: torch.Generator,
    *,
    joins: bool = False,
) -> Iterator[list[Tensor]]:
    """Yield the batches (b,) of each epoch, of samples at these positions (n,) in a new order.

    Args:
        steps: number of batches in all, in place of epochs; the last epoch may end early.
        joins: whether the last two batches of an epoch are one.
    """
    left = steps
    for _ in range(epochs if steps is None else steps):
        if left == 0:
            return
        order = places[torch.randperm(len(places), generator=generator)]
        batches = _batches(order, batch_size, joins)[:left]
        if left is not None:
            left -= len(batches)
        yield batches


def kind_of_loop(
    model: nn.Module,
    inputs: Tensor,
    loss: Loss | None = None,
    optimizer: Hashable | None = None,
    keeps_best: bool = False,
) -> Hashable | None:
    """Return what the cost of a batch depends on besides its size; None if there may be more.

    Without a loss it is that of a prediction.
    """
    of_model = kind_by_shapes(model)
    if of_model is None:
        return None
    parameters = [*model.parameters()]
    numbers = tuple(value.dtype for value in parameters)
    about = (
        of_model,
        numbers,
        inputs.dtype,
        inputs.shape[1:],
        current_device(),
        torch.backends.mkldnn.enabled,
    )
    if loss is None:
        return about
    of_loss = kind_by_shapes(loss)
    if of_loss is None or optimizer is None:
        return None
    trained = tuple(value.requires_grad for value in parameters)
    return (*about, of_loss, optimizer, keeps_best, trained)


def _check_finite(first: Tensor | None, total: Tensor, epoch: int) -> None:
    """Raise `TrainingError` if the losses of an epoch, or that of the first step of all, are not finite."""
    if torch.isfinite(total):
        return
    if first is not None and not torch.isfinite(first):
        raise TrainingError(
            f"the loss is {first.item()} before the first step of training: the weights that it"
            " starts from are broken, or the inputs are extreme; if weights were received, look at"
            " the rounds before and at the codec of the downlink"
        )
    raise TrainingError(
        f"the loss is {total.item()} in local epoch {epoch + 1}: lower train.optimizer.lr, or look"
        " for extreme inputs"
    )


@torch.no_grad()
def _mean_loss(model: nn.Module, inputs: Tensor, validation: Validation, costs: BatchCosts) -> float:
    """Return the mean loss on what is held out, in evaluation mode; the model is then in training mode."""
    model.eval()
    total = torch.zeros(())
    for index in torch.split(validation.held_out, PREDICTION_BATCH):
        with costs.batch(len(index)):
            total += validation.loss(outputs(model, inputs, index), index) * len(index)
    model.train()
    return float(total) / len(validation.held_out)


def _batches(order: Tensor, batch_size: int, joins: bool) -> list[Tensor]:
    batches = list(torch.split(order, batch_size))
    return [*batches[:-2], torch.cat(batches[-2:])] if joins else batches


def _last_joins(model: nn.Module, inputs: Tensor, samples: int, batch_size: int) -> bool:
    """Return whether the last batch must not stand alone, where training is on ``samples`` of the inputs."""
    alone = samples == 1 or batch_size == 1
    if not alone and samples % batch_size != 1:
        return False
    if not has_one_value_per_channel(model, batch(inputs, torch.zeros(1, dtype=torch.int64))):
        return False
    if alone:
        raise TrainingError(
            f"batches of one of {samples} samples leave batch norm one value per channel: use"
            " nn.GroupNorm or nn.LayerNorm, a larger batch size, or more samples"
        )
    return True


@torch.no_grad()
def has_one_value_per_channel(model: nn.Module, sample: Tensor) -> bool:
    """Return whether a batch of one sample (1, ...) gives batch norm one value per channel, without spread.

    Of such a batch, torch computes no statistics in training.
    """
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return False
    lengths: list[int] = []

    def note(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        lengths.append(given[0].numel() // given[0].shape[1])

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    model.eval()
    try:
        model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return 1 in lengths


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = PREDICTION_BATCH) -> Tensor:
    """Return logits (n, C) in evaluation mode.

    Raises:
        TrainingError: an output is NaN or infinite; its most likely class would be class 0 without a word.
    """
    model.eval()
    costs, parts = BatchCosts(kind_of_loop(model, inputs)), []
    with placed(model), counting_batches():
        for index in torch.split(torch.arange(len(inputs)), batch_size):
            with costs.batch(len(index)):
                parts.append(outputs(model, inputs, index))
    found = torch.cat(parts)
    finite = torch.isfinite(found).flatten(1).all(dim=1)
    if not finite.all():
        raise TrainingError(
            f"the model's outputs are NaN or infinite for {int((~finite).sum()):,} of {len(found):,}"
            " samples in evaluation mode: lower train.optimizer.lr, or look for extreme inputs or for"
            " statistics that a normalisation layer cannot use"
        )
    return found


def outputs(
    model: nn.Module, inputs: Tensor, index: Tensor, augment: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return what a model says of some samples, in the processor's memory; call it inside `placed`."""
    found: Tensor = model(batch(inputs, index, augment, current_device()))
    return found.to(CPU)


def batch(
    inputs: Tensor,
    index: Tensor,
    augment: Callable[[Tensor], Tensor] | None = None,
    device: torch.device = CPU,
) -> Tensor:
    """Select samples and convert them to what models take: scaled pixels, int64 tokens, or floats."""
    # Copies row by row, three times as fast as `inputs[index]`.
    picked = inputs.index_select(0, index)
    if augment is not None:
        picked = augment(picked)
    picked = picked.to(device)  # as stored: bytes, where models take floats
    if inputs.dtype == torch.uint8:
        return to_float(picked).contiguous(memory_format=torch.channels_last)
    return picked if picked.is_floating_point() else picked.to(torch.int64)


def to_float(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to [-1, 1], by constants that do not depend on private data."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)
