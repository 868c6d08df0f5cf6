"""Linear discriminant analysis on fixed features, from moments that each client sends once."""

from torch import Tensor

from fedistill.methods.shared.moments import Moments, MomentsMethod, inverse


class Gaussian(MomentsMethod):
    """Each client sends moments of fixed features once; the server has one Gaussian per class.

    The messages are those of `ridge`, with the same settings and bytes. The Gaussians have the means of the
    classes and one covariance W, that within classes, so the logits are linear in the features x:
    ``m_c W^-1 x - m_c W^-1 m_c / 2 + log N_c / N``, the linear discriminant. Classes without samples are
    impossible. With ``distill_epochs``, the server's network learns the classes that they give to the public
    samples, which only the server needs; else ``models`` has no meaning here.

    Exchanged: a request down, counts, class means and the covariance within classes up, once; 11 bytes down,
    ``(d (d - 1) H / 2 + m d H') / 8`` up.

    Departs from the paper, which takes the features of a pretrained network and has other heads besides:
    features are fixed by design unless a model is named, and there is this head alone.
    """

    name = "gaussian"
    paper = "Turazza et al., 2026, arXiv 2602.01186 (abstract)"

    def classifier(self, moments: Moments, l2: float) -> tuple[Tensor, Tensor]:
        total = moments.samples.sum()
        means = moments.sums / moments.samples.clamp(min=1)[:, None]
        weights = means @ inverse((moments.products - means.T @ moments.sums) / total, l2)
        prior = (moments.samples / total).log().clamp(min=_IMPOSSIBLE)
        return weights, prior - (weights * means).sum(dim=1) / 2


_IMPOSSIBLE = -1e9
"""Stands for the logarithm of 0: finite, and out of reach."""
