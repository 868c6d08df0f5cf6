"""Multinomial naive Bayes as a module."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

IMPOSSIBLE = -1e9
"""Stands for the logarithm of a prior of 0: finite, and out of reach for any text."""


class NaiveBayes(nn.Module):
    """Returns the logarithm of each class's probability (n, C) for token ids (n, length); 0 is padding.

    It is ``log P(c) + sum over words w of log P(w | c)``, normalised over classes. As built, it knows
    nothing, and all classes are equally probable.

    Attributes:
        words: log P(w | c), less its mean over classes, (V, C); for word ids 1 … V.
        prior: log P(c), (C,).
    """

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(vocabulary, classes))
        self.prior = nn.Parameter(torch.zeros(classes))

    @classmethod
    def of(cls, words: Tensor, texts: Tensor, alpha: float, uniform: bool) -> "NaiveBayes":
        """Return the model of these counts of words (C, V) and texts (C,), integers.

        Source: Manning, Raghavan and Schütze, Introduction to Information Retrieval (2008), section 13.2,
        equations 13.3 to 13.7.

        Args:
            alpha: added to each count of a word.
            uniform: whether all classes that have texts are equally probable beforehand.
        """
        smoothed = words.double() + alpha
        logs = (smoothed / smoothed.sum(dim=1, keepdim=True)).log().T
        share = (texts > 0).double() if uniform else texts.double()
        prior = (share / share.sum()).log().clamp(min=IMPOSSIBLE)
        model = cls(words.shape[1], words.shape[0])
        with torch.no_grad():
            # What all classes have in common would only cost digits.
            model.words.copy_(logs - logs.mean(dim=1, keepdim=True))
            model.prior.copy_(prior if texts.any() else torch.zeros_like(prior))
        return model

    def forward(self, tokens: Tensor) -> Tensor:
        # Padding is no word: a row of its own would be a weight that means nothing.
        found = embedding((tokens - 1).clamp(min=0), self.words)
        logits = found.masked_fill((tokens == 0).unsqueeze(2), 0.0).sum(dim=1) + self.prior
        return logits.log_softmax(dim=1)
