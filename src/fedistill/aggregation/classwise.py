"""Medians of vectors per class over clients, and which clients describe classes as the others do."""

import torch
from torch import Tensor


def class_medians(vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return entrywise medians (C, d) over the clients that sent a class, and a mask (C,) of these classes.

    The median of an even number of values is the mean of the middle two; classes that nobody sent get zeros.

    Args:
        vectors: (k, C, d), those of k clients; ``present``: (k, C), which of them were sent.

    Examples:
        Three clients and one class with one number.

        >>> sent = torch.tensor([[True], [True], [True]])
        >>> class_medians(torch.tensor([[[1.0]], [[2.0]], [[90.0]]]), sent)
        (tensor([[2.]]), tensor([True]))
    """
    count = present.sum(dim=0)
    ordered = torch.where(present[..., None], vectors, torch.inf).sort(dim=0).values
    low = ((count - 1).clamp(min=0) // 2).expand(1, -1)[..., None].expand(1, *vectors.shape[1:])
    high = (count.clamp(min=1) // 2).expand(1, -1)[..., None].expand(1, *vectors.shape[1:])
    middle = (ordered.gather(0, low)[0] + ordered.gather(0, high)[0]) / 2
    return torch.where((count > 0)[:, None], middle, 0), count > 0


def class_agreement(vectors: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Return how far each client describes classes as most others do (k,), from 0 to 1.

    That is the share, by weight, of those of its classes whose vector is nearer to the median of its own
    class than to that of any other, and no further from it than the furthest of these. A client that sent
    no class gets 0, and 1 where there is one class alone.

    Args:
        vectors: (k, C, d), those of k clients; ``present``: (k, C), which of them were sent.
        weights: (k, C), how much each counts.
    """
    medians, named = class_medians(vectors, present)
    if int(named.sum()) < 2:
        return present.any(dim=1).double()
    centres = medians[named].double()
    apart = torch.cdist(centres, centres).max(dim=1).values
    agreed = []
    for own, sent, weight in zip(vectors, present, weights, strict=True):
        away = torch.cdist(own[named].double(), centres)
        nearest = (away.argmin(dim=1) == torch.arange(len(centres))) & (away.diag() <= apart)
        counted = weight[named].double() * sent[named]
        agreed.append((counted * nearest).sum() / counted.sum().clamp(min=torch.finfo(torch.float64).tiny))
    return torch.stack(agreed)


def class_likeness(vectors: Tensor, present: Tensor) -> Tensor:
    """Return how alike each client's vectors are to the medians of their classes (k,), from 0 to 1.

    That is the mean, over the client's classes, of the cosine with the median of the class, 0 where it is
    negative, times how much of the vector remains if it is cut to the length of the median one. Unlike
    `class_agreement` it suits vectors that mean different things at different clients, as the features of
    models that have not met yet do.

    Args:
        vectors: (k, C, d), those of k clients; ``present``: (k, C), which of them were sent.
    """
    medians, _ = class_medians(vectors, present)
    lengths = vectors.double().norm(dim=2)
    usual, _ = class_medians(lengths[..., None], present)
    kept = (usual[:, 0] / lengths.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1)
    cosines = torch.cosine_similarity(vectors.double(), medians.double()[None], dim=2).clamp(0, 1)
    alike = torch.where(present, cosines * kept, 0)
    return alike.sum(dim=1) / present.sum(dim=1).clamp(min=1)
