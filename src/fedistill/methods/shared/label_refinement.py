"""Shared by methods whose server weighs, beside votes, what public samples look like."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedistill.methods.participants import Server
from fedistill.methods.shared.moments import inverse
from fedistill.models.fixed_features import EdgeFrequencies
from fedistill.models.naive_bayes import NaiveBayes
from fedistill.training.loop import predict

Classify = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes labels (n,), C for none, which samples (a mask (n,)) to learn them of and which to judge (a mask
of m samples); returns logits (m, C) of the latter, float64."""

WIDTH = 128
_PASSES = 5
_FOLDS = 10
_L2 = 0.05
_LEAST_DEVIATION = 1e-6
_LEAST_VARIANCE = 1e-3
"""Added to the variance within classes, of features whose variance is 1: a feature may be constant there."""
_MOST_RIGHT = 0.99
_NEVER = -1e9
"""Stands for minus infinity, and stays out of reach when it is multiplied by the least of these factors."""
_FACTORS = [2.0 ** (half / 2) for half in range(2, -17, -1)]


def refine(labels: Tensor, evidence: Tensor, classify: Classify) -> Tensor:
    """Return labels (n,) that agree with what samples look like as well as with the votes on them.

    A classifier learns the pooled labels of nine tenths of the samples and says what it takes the others for.
    Its logits, which are far too certain, are multiplied by the factor with which they explain the pooled
    labels best, and are the prior of each sample's class; votes are evidence beside it. The classifier then
    learns the labels that result, five times in all. Nothing of it is sent. A classifier that explains the
    pooled labels no better than how often each occurs is not listened to.

    Classes of which there is no pooled label stay without, and then samples on which nobody voted do too,
    since they may be of these.

    After Raykar et al. (2010, Learning from Crowds, JMLR 11, section 2), who estimate a classifier, votes and
    labels together. Here what votes say about a class is given, labels are hard, and the classifier never
    judges a sample whose label it has learned itself; in later passes this label has shaped others, a little.

    Args:
        labels: (n,), pooled, C for none.
        evidence: (n, C), float64, the log-likelihood of the votes on each sample, by its class.
    """
    classes = evidence.shape[1]
    if len(torch.unique(labels[labels < classes])) < 2:
        return labels
    unknown = torch.bincount(labels, minlength=classes + 1)[:classes] == 0
    open_to_doubt = (labels < classes) | ~unknown.any()
    refined = labels
    for _ in range(_PASSES):
        looks = _tempered(_out_of_fold(refined, classes, classify).masked_fill(unknown, _NEVER), labels)
        if looks is None:
            break
        found = (looks + evidence.masked_fill(unknown, 0)).argmax(dim=1)
        refined = torch.where(open_to_doubt, found, labels)
    return refined


def _tempered(logits: Tensor, labels: Tensor) -> Tensor | None:
    """Return log-probabilities (n, C): those logits, times the factor that explains these labels best.

    None if that is no better than how often each label occurs.
    """
    known = labels < logits.shape[1]
    own, truth = logits[known], labels[known, None]

    def explained(factor: float) -> float:
        return float((own * factor).log_softmax(dim=1).gather(1, truth).sum())

    best = max(_FACTORS, key=explained)
    often = torch.bincount(truth.flatten()).double()
    if explained(best) <= float(torch.xlogy(often, often / len(truth)).sum()):
        return None
    found: Tensor = (logits * best).log_softmax(dim=1)
    return found


def _out_of_fold(labels: Tensor, classes: int, classify: Classify) -> Tensor:
    """Return for each sample the logits of a classifier that has not learned its label, (n, C)."""
    fold = torch.arange(len(labels)) % _FOLDS
    found = torch.zeros(len(labels), classes, dtype=torch.float64)
    for number in range(_FOLDS):
        judged = fold == number
        learned = ~judged & (labels < classes)
        if learned.any():
            found[judged] = classify(labels, learned, judged)
    return found


def classifier(server: Server, places: Tensor) -> Classify:
    """Return the classifier of the public samples at these places (n,).

    Of texts it is naive Bayes on the tokens of the server's model, else a linear discriminant: of images on
    frequencies of brightness and edges (`EdgeFrequencies`), or on the pixels of those too small for edges; of
    tables on the columns.
    """
    own = server.federation.signatures[server.model]
    inputs = server.public_inputs(server.model)[places]
    if own.kind == "text":
        return partial(_naive_bayes, inputs.long(), own.vocabulary, server.classes)
    width = min(WIDTH, EdgeFrequencies.most(own.shape)) if own.kind == "image" else 0
    features = predict(EdgeFrequencies(own.shape, width), inputs) if width else inputs.flatten(1)
    return partial(_discriminant, features.double(), server.classes)


def coin_evidence(counts: Tensor, labels: Tensor) -> Tensor:
    """Return the log-likelihood (n, C), float64, of plain votes on each sample, by the sample's class.

    All clients vote for the right class equally often, and else for each other class equally often: as often
    as their votes are for the pooled labels (n,).

    Args:
        counts: (n, C), how many clients vote for a class.
    """
    classes, counts = counts.shape[1], counts.double()
    agreed = counts.gather(1, labels[:, None]).sum() / counts.sum().clamp(min=1)
    right = agreed.clamp(1 / classes, _MOST_RIGHT)
    return counts * (right * (classes - 1) / (1 - right)).log()


def _discriminant(features: Tensor, classes: int, labels: Tensor, learned: Tensor, judged: Tensor) -> Tensor:
    """Linear discriminant analysis, whose class means are drawn to the common one as by one sample."""
    deviations = features.std(dim=0, correction=0)
    scaled = (features - features.mean(dim=0)) / deviations.clamp(min=_LEAST_DEVIATION)
    known, own = scaled[learned], labels[learned]
    hot = one_hot(own, classes).double()
    counts = hot.sum(dim=0) + 1
    means = (hot.T @ known + known.mean(dim=0)) / counts[:, None]
    centred = known - means[own]
    within = centred.T @ centred / len(known) + _LEAST_VARIANCE * torch.eye(scaled.shape[1])
    weights = means @ inverse(within, _L2)
    biases = (counts / counts.sum()).log() - (weights * means).sum(dim=1) / 2
    return scaled[judged] @ weights.T + biases


def _naive_bayes(
    tokens: Tensor, vocabulary: int, classes: int, labels: Tensor, learned: Tensor, judged: Tensor
) -> Tensor:
    known, own = tokens[learned], labels[learned]
    cells = (own[:, None] * vocabulary + known)[known > 0]
    words = torch.bincount(cells, minlength=classes * vocabulary).reshape(classes, vocabulary)[:, 1:]
    texts = torch.bincount(own, minlength=classes) + 1
    return predict(NaiveBayes.of(words, texts, alpha=1.0, uniform=False), tokens[judged]).double()
