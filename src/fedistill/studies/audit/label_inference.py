"""Label distribution inference: a client's share of each class, guessed from what it sent.

Labels and models are judged by what they say of samples that are not the client's: a model that was trained
on many samples of a class names it more often. Shi, Ouyang and Wang (2025, arXiv 2502.08001) guess the mean
of a client's outputs over public samples and rounds. That of the first message alone is closer here: until
it has heard of the others, a client's model knows its own classes only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedistill.federation.arm import ReadyArm
from fedistill.models import registry as models
from fedistill.studies.audit.asked import answers
from fedistill.studies.audit.evidence import (
    Counts,
    Evidence,
    Features,
    Labels,
    Model,
    Outputs,
    Statistics,
    Words,
)

Said = Mapping[int, Mapping[int, Sequence[Evidence]]]
"""What each client's messages say, by client and round."""
_STEPS = 1000
_ASKED = 1000
"""A model is asked about this many samples of the test set, at most."""
_LEAST = 1e-3


@dataclass(frozen=True)
class Guess:
    """Shares (C,) of classes, and how they were guessed."""

    how: str
    shares: Tensor


def total_variation(left: Tensor, right: Tensor) -> float:
    """Return half the sum of absolute differences of shares (C,), from 0 to 1.

    Examples:
        >>> total_variation(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        0.5
    """
    return float((left - right).abs().sum() / 2)


def divergence(truth: Tensor, guess: Tensor) -> float:
    """Return the KL divergence from the true shares (C,) to a guess, in nats.

    Shares of the guess are at least 0.001: no class is excluded by a guess.

    Examples:
        >>> round(divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])), 4)
        0.6931
    """
    guess = guess.clamp(min=_LEAST) / guess.clamp(min=_LEAST).sum()
    kept = truth > 0
    return max(0.0, float((truth[kept] * (truth[kept] / guess[kept]).log()).sum()))


def stationary(table: Tensor, present: Tensor) -> Tensor:
    """Return the shares (C,) of classes among the samples of which these are the mean outputs by class.

    Cross-entropy is least where the mean output over all training samples is the shares of the classes among
    them: ``sum_c pi_c M_c = pi`` for the mean outputs M_c of class c, so the shares are a left eigenvector of
    M, found by iteration. Of a model that makes no errors M is the identity, and says nothing.

    Args:
        table: M, (C, C); ``present``: mask (C,) of the classes that the client has, at least one.

    Examples:
        >>> table = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
        >>> [round(share, 4) for share in stationary(table, torch.tensor([True, True])).tolist()]
        [0.75, 0.25]
    """
    rows = table.double() * torch.outer(present, present)
    rows = rows / rows.sum(dim=1, keepdim=True).clamp(min=1e-12)
    shares = present.double() / present.sum()
    for _ in range(_STEPS):
        shares = shares @ rows
    return (shares / shares.sum()).float()


def guess_shares(arm: ReadyArm, said: Said) -> dict[int, list[Guess]]:
    """Return the guesses about each client, the best one first; none if its messages say nothing."""
    return {client: _guesses(arm, rounds) for client, rounds in said.items()}


def _guesses(arm: ReadyArm, rounds: Mapping[int, Sequence[Evidence]]) -> list[Guess]:
    parts = [part for number in sorted(rounds) for part in rounds[number]]
    found = [
        Guess("counts, rounded" if isinstance(part, Counts) else "counts", _shares(counts))
        for part in parts
        if (counts := _counts(part)) is not None
    ]
    means = [part for part in parts if isinstance(part, Outputs)]
    if means:
        found.append(Guess("stationary outputs", stationary(means[0].means, means[0].present)))
    outputs = [_mean_output(arm, part) for part in parts if isinstance(part, Labels | Model)]
    if outputs:
        found.append(Guess("outputs, first message", outputs[0]))
        found.append(Guess("outputs, mean over rounds", torch.stack(outputs).mean(dim=0)))
    held = [part.present for part in parts if isinstance(part, Features)]
    if held:
        found.append(Guess("classes present", _shares(held[0].float())))
    return list({one.how: one for one in reversed(found)}.values())[::-1]


def _counts(part: Evidence) -> Tensor | None:
    """Return the samples of each class (C,) that a message states, if it does."""
    match part:
        case Statistics():
            return part.moments.samples
        case Words():
            return part.texts
        case Counts():
            return part.samples
    return None


def _mean_output(arm: ReadyArm, part: Labels | Model) -> Tensor:
    """Return the mean output (C,) of a client, on public samples or on some of the test set."""
    if isinstance(part, Labels):
        return part.probs.mean(dim=0) if len(part.probs) else _shares(torch.ones(part.probs.shape[1]))
    # Not the first ones: a test set may be sorted by class.
    inputs = arm.task.test_inputs(models.preprocessing(part.name))[:: -(-len(arm.task.test) // _ASKED)]
    return answers(arm, part.name, part.state, inputs).softmax(dim=1).mean(dim=0)


def _shares(counts: Tensor) -> Tensor:
    return (counts.double() / counts.sum().clamp(min=1e-12)).float()
