"""Ridge regression on fixed features, from moments that each client sends once."""

from torch import Tensor

from fedistill.methods.shared.moments import Moments, MomentsMethod, inverse


class Ridge(MomentsMethod):
    """Each client sends moments of fixed features once; the server solves ridge regression on one-hot labels.

    Nobody trains. The features of an image are low frequencies of its brightness and of its edges in four
    directions (`fedistill.models.fixed_features`); those of a table's row are the inputs of models, scaled
    columns and categories; both are known beforehand. With ``features``, they are
    those of a frozen model, for texts too (`fedistill.models.frozen_features`); server and clients must have
    it. A client sends how many samples it has of each class, their mean features, and the covariance of
    features within classes. From these the server has all that least squares needs: with T the covariance of
    all samples and u_c the covariance of the features with the label c, the weights are ``(T + l2 diag T)^-1
    u_c``. The sums are those of all samples pooled, so that up to rounding the result does not depend on how
    these are split.

    Exchanged: a request down, moments up. Standard deviations are rounded to eighths of an octave, means to
    quarters of a standard deviation, correlations to ``levels``, and all are range-coded. Bytes: 11 down,
    ``(d (d - 1) H / 2 + m d H') / 8`` up for the m classes that a client has; with 3 levels, H is about 2
    bits. Rounding may make the sum indefinite: its negative eigenvalues are set to 0, and ``l2`` outweighs
    what is left of the noise: by default it is as large as rounding asks for, so that coarse correlations of
    more features are worth more than fine ones of fewer. With ``distill_epochs``, the server's network learns
    the classes that this model gives to the public samples, which only the server needs; else ``models`` has
    no meaning here.

    Departs from the paper, which takes the features of a large pretrained network and sends them unrounded:
    the features here are fixed by design unless a model is named, the covariance is that within classes,
    whose numbers are smaller, and the ridge is relative to the variance of each feature.
    """

    name = "ridge"
    paper = "He et al., 2024, arXiv 2405.16240 (AFL)"

    def classifier(self, moments: Moments, l2: float) -> tuple[Tensor, Tensor]:
        total = moments.samples.sum()
        mean, shares = moments.sums.sum(dim=0) / total, moments.samples / total
        covariance = moments.products / total - mean.outer(mean)
        weights = (moments.sums / total - shares.outer(mean)) @ inverse(covariance, l2)
        return weights, shares - weights @ mean
