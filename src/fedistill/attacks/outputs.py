"""Attacks on what a client's model says: labels, class outputs, prototypes and class means."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.attacks.base import Liar, MessageAttack
from fedistill.attacks.parts import Part, Role

_OF_CLASSES = frozenset({Role.PROBS, Role.LOGITS, Role.CLASS_OUTPUTS})
"""Rows with an entry for each class."""


class Random(MessageAttack):
    """Random outputs: rows drawn evenly from all probabilities, or numbers as large as its own.

    Logits, prototypes and class means have the mean and the spread of the client's own. Weights change by as
    much as they would have, in a random direction.
    """

    kind: Literal["random"] = "random"
    source = "Blanchard et al., 2017, arXiv 1703.02757 (Gaussian attack, for gradients)"
    roles = frozenset(Role)

    def lie(self, part: Part, liar: Liar) -> Tensor:
        return _drawn(part, liar.draws())


class Colluding(MessageAttack):
    """All liars send the same: one class for each row, drawn once for all rounds, with certainty.

    Of prototypes, class means and weights they send numbers that they draw alike.
    """

    kind: Literal["colluding"] = "colluding"
    source = "Baruch et al., 2019, arXiv 1902.06156 (colluding workers send one vector)"
    roles = frozenset(Role)

    def lie(self, part: Part, liar: Liar) -> Tensor:
        draws = liar.common_draws()
        if part.role in _OF_CLASSES:
            rows = torch.randint(liar.classes, (len(part.values),), generator=draws)
            return _certain(rows, part)
        if part.classes is not None:
            # A row for each class, so that liars with different classes send equal rows for equal ones.
            table = torch.randn(liar.classes, part.values.shape[1], generator=draws)
            return part.values.mean() + _spread(part.values) * table[part.classes]
        return _drawn(part, draws)


class LeastLikely(MessageAttack):
    """Each row names the class that the client's model finds least likely, with certainty.

    Departs from the source, whose liars know the mean of the honest clients' rows: these know their own.
    """

    kind: Literal["least-likely"] = "least-likely"
    source = "Roux et al., 2024, arXiv 2402.12265 (loss maximization attack)"
    roles = _OF_CLASSES

    def lie(self, part: Part, liar: Liar) -> Tensor:
        return _certain(_untied(part, liar).argmin(dim=1), part)


class ClassPermuted(MessageAttack):
    """The entries of each row change places: each goes to the next likely class, the last to the first.

    So a plausible class gets the confidence of the most likely one, which gets the least. The paper reorders
    confidences by rank; that each moves by one place is our choice. Prototypes and class means, which have no
    ranks, go to the next class that the client has.
    """

    kind: Literal["class-permuted"] = "class-permuted"
    source = "Tang et al., 2024, arXiv 2401.03685 (federated distillation logits attack, FDLA)"
    roles = _OF_CLASSES | {Role.PROTOTYPES, Role.MEANS}

    def lie(self, part: Part, liar: Liar) -> Tensor:
        if part.classes is not None:
            return part.values.roll(1, dims=0)
        order = _untied(part, liar).argsort(dim=1, descending=True)
        ranked = part.values.gather(1, order)
        return torch.empty_like(part.values).scatter(1, order, ranked.roll(1, dims=1))


def _certain(classes: Tensor, part: Part) -> Tensor:
    """Return rows (n, C) that name these classes (n,), as large as the client's own."""
    named = one_hot(classes, part.values.shape[1]).float()
    if part.role is Role.LOGITS:
        return named * (part.values.max() - part.values.min()) + part.values.min()
    return _where_known(named, part)


def _untied(part: Part, liar: Liar) -> Tensor:
    """Return the rows with equal entries, as votes have, in a random order."""
    return part.values + 1e-6 * torch.rand(part.values.shape, generator=liar.draws())


def _where_known(rows: Tensor, part: Part) -> Tensor:
    """Return rows, with zeros for the classes that the client does not have."""
    if part.role is Role.CLASS_OUTPUTS:
        return torch.where((part.values != 0).any(dim=1, keepdim=True), rows, 0)
    return rows


def _drawn(part: Part, draws: torch.Generator) -> Tensor:
    """Return random values for a part."""
    values = part.values
    if part.role in (Role.PROBS, Role.CLASS_OUTPUTS):
        odds = -torch.rand(values.shape, generator=draws).clamp(min=1e-6).log()
        return _where_known(odds / odds.sum(dim=1, keepdim=True), part)
    if part.role is Role.CHANGES:
        return values[torch.randperm(len(values), generator=draws)]
    noise = torch.randn(values.shape, generator=draws)
    if part.received is not None:
        size = float((values - part.received).norm() / noise.norm())
        return part.received + noise * size
    return values.mean() + _spread(values) * noise


def _spread(values: Tensor) -> float:
    return float(values.std(correction=0))
