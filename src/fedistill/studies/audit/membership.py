"""Membership inference: scores of a client's candidates, from what it sent.

Where a message gives a model to ask (weights; a surrogate of labels), the scores are

- ``loss``: the logarithm of the probability of the true class (Yeom et al., 2018, arXiv 1709.01604);
- ``entropy``: the entropy of the prediction, negated;
- ``lira``: the offline likelihood ratio attack of Carlini et al. (2022, arXiv 2112.03570): the logit
  ``log p / (1 - p)`` of the true class, standardised by what it is under shadows that were not trained on the
  candidate. With as few shadows as here one variance serves all candidates, as that paper advises;
- ``co-op``: the same, with the other clients in place of shadows (Shi et al., 2025, arXiv 2502.08001).

Where a message describes classes by means, ``trace`` compares the candidate with the client's mean of its
class, relative to the test set's, and in units of the features' variance: a sample is on the side of a mean
that it is part of (Homer et al., 2008, doi 10.1371/journal.pgen.1000167; Dwork et al., 2015, doi
10.1109/FOCS.2015.46). Of word counts, ``words`` counts the words of the candidate that the client never had
in its class, negated: a member has none.

``blind`` is a control. It scores a candidate by the shadows alone, which know nothing of who is a member: if
its area is not 0.5 within its range, members and non-members differ in something else.

Scores of several rounds are averaged.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedistill.studies.audit.candidates import Candidates

LEAST_DEVIATION = 1e-3


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``log p / (1 - p)`` (n,) of the true class, from logits (n, C), without loss of precision.

    Examples:
        >>> confidence(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).tolist()
        [1.0]
    """
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own - others.logsumexp(dim=1)


def log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logarithm of the probability (n,) of the true class, from logits (n, C)."""
    return logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]


def negative_entropy(logits: Tensor) -> Tensor:
    """Return the entropy (n,) of the prediction, negated, in nats, from logits (n, C)."""
    logs = logits.log_softmax(dim=1)
    return (logs.exp() * logs).sum(dim=1)


def calibrated(target: Tensor, references: Tensor, usable: Tensor) -> Tensor:
    """Return scores (n,) standardised by those of models that were not trained on the candidates.

    The mean is that of the candidate, the variance that of all: the mean of the candidates' variances.
    Candidates without a reference are standardised by the mean over all others.

    Args:
        target: (n,); ``references``: (k, n), of the same kind.
        usable: mask (k, n) of the references that may be used for a candidate.
    """
    count = usable.sum(dim=0)
    known = torch.where(usable, references, 0.0)
    mean = known.sum(dim=0) / count.clamp(min=1)
    mean = torch.where(count > 0, mean, known.sum() / usable.sum().clamp(min=1))
    squares = torch.where(usable, (references - mean).square(), 0.0)
    spread = squares.sum() / (count - 1).clamp(min=0).sum().clamp(min=1)
    return (target - mean) / spread.sqrt().clamp(min=LEAST_DEVIATION)


def usable_shadows(halves: Sequence[int], candidates: Candidates) -> Tensor:
    """Return the mask (k, n) of shadows, trained on these halves, whose half is not the candidate's."""
    return torch.tensor(list(halves))[:, None] != candidates.half[None]


def mean_of_usable(references: Tensor, usable: Tensor) -> Tensor:
    """Return the mean (n,) of those references (k, n) that may be used for a candidate."""
    return torch.where(usable, references, 0.0).sum(dim=0) / usable.sum(dim=0).clamp(min=1)


def trace(features: Tensor, labels: Tensor, client: Tensor, usual: Tensor, precision: Tensor) -> Tensor:
    """Return how far a sample is on the side of its class that the client's mean is on, (n,).

    Args:
        features: (n, d), of candidates with the labels (n,).
        client: (C, d), the client's means by class; ``usual``: those of the test set.
        precision: (d, d), the inverse of the covariance within classes.

    Examples:
        >>> trace(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor([[2.0, 2.0]]),
        ...       torch.zeros(1, 2), torch.eye(2)).tolist()
        [2.0]
    """
    shift = client[labels] - usual[labels]
    away = features - usual[labels]
    return ((away @ precision) * shift).sum(dim=1)


def unseen_words(tokens: Tensor, labels: Tensor, words: Tensor) -> Tensor:
    """Return how many words of each text the client never had in its texts of the class, (n,).

    Args:
        tokens: (n, length), 0 for padding, else 1 + the word; ``labels``: (n,).
        words: (C, V), the client's counts.

    Examples:
        >>> unseen_words(torch.tensor([[1, 3, 0]]), torch.tensor([0]), torch.tensor([[2, 0, 0]])).tolist()
        [1]
    """
    seen = words[labels].gather(1, (tokens - 1).clamp(min=0)) > 0
    return ((tokens > 0) & ~seen).sum(dim=1)
