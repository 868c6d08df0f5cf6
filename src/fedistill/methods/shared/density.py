"""Similarity of samples to a client's own data: density ratios and distances, on vectors of any task."""

import torch
from torch import Tensor

from fedistill.models.signature import Signature

WORDS = 4096
"""Number of buckets that words are hashed to."""


def vectors(inputs: Tensor, signature: Signature, public: Tensor) -> Tensor:
    """Return samples as float32 vectors (n, d) whose distances are meaningful.

    Images: their pixels, from 0 to 1. Rows of tables: their scaled columns and categories, as models take
    them. Texts: word counts, hashed to 4,096 buckets, weighted by the inverse document frequency in the
    public texts and scaled to length 1; unweighted counts separate topics no better than chance.
    """
    if signature.kind == "image":
        return inputs.flatten(start_dim=1).float() / 255
    if signature.kind == "table":
        return inputs
    common = (_counts(public) > 0).sum(dim=0)
    weights = ((1 + len(public)) / (1 + common)).log()
    return torch.nn.functional.normalize(_counts(inputs) * weights, dim=1)


def _counts(tokens: Tensor) -> Tensor:
    places = tokens.long() % WORDS
    return torch.zeros(len(tokens), WORDS).scatter_add_(1, places, (tokens > 0).float())


class Kulsif:
    """Ratio of the density of references to the uniform density at a sample, by KuLSIF.

    r(x) = sum_i alpha_i k(x, u_i) + 1 / (m l) sum_j k(x, x_j), where k is a Gaussian kernel, x_j are the m
    references, u_i are n points drawn uniformly from the box that the references span, l = n^(-1/2), and
    alpha solves ((1/n) K_uu + l I) alpha = -1 / (n m l) K_ux 1. The estimate is not constrained to be
    positive.

    Args:
        references: (m, d), m >= 1.
        auxiliaries: n, the number of uniform points.
        width: kernel width, in the units of the vectors; default: the median distance between references.

    Source: Kanamori et al., 2012, doi 10.1007/s10994-011-5266-3, section 3.
    """

    def __init__(
        self,
        references: Tensor,
        generator: torch.Generator,
        auxiliaries: int = 250,
        width: float | None = None,
    ) -> None:
        low, high = references.min(dim=0).values, references.max(dim=0).values
        drawn = torch.rand(auxiliaries, references.shape[1], generator=generator)
        self.uniform = low + drawn * (high - low)
        self.references = references
        self.width = width or _median_distance(references)
        penalty: float = auxiliaries**-0.5
        m = len(references)
        left = self._kernel(self.uniform, self.uniform) / auxiliaries
        left.diagonal().add_(penalty)
        right = self._kernel(self.uniform, references).sum(dim=1) / (-auxiliaries * m * penalty)
        self.weights = torch.linalg.solve(left, right)
        self.share = 1 / (m * penalty)

    def __call__(self, samples: Tensor) -> Tensor:
        """Return the ratios (s,), float64, at samples (s, d)."""
        near = self._kernel(samples, self.references).sum(dim=1)
        far = torch.mv(self._kernel(samples, self.uniform), self.weights)
        return far + self.share * near

    def _kernel(self, left: Tensor, right: Tensor) -> Tensor:
        apart = torch.cdist(left.double(), right.double())
        return torch.exp(-apart.square() / (2 * self.width**2))


class Centroids:
    """Negative distance to the nearest of the centroids that k-means finds among references.

    Args:
        references: (m, d), m >= 1.
        clusters: k, limited to the number of distinct references.
    """

    def __init__(self, references: Tensor, generator: torch.Generator, clusters: int) -> None:
        self.points = kmeans(references, clusters, generator)[0]

    def __call__(self, samples: Tensor) -> Tensor:
        """Return the negative distances (s,), float64, of samples (s, d)."""
        return -torch.cdist(samples.double(), self.points).amin(dim=1)


def kmeans(points: Tensor, clusters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return centroids (k, d), float64, and the index (m,) of the nearest one to each of points (m, d)."""
    # Importing scikit-learn takes longer than most commands.
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rows = points.double().numpy()
    count = min(clusters, len(torch.unique(points, dim=0)))
    seed = int(torch.randint(2**31, (), generator=generator))
    with threadpool_limits(1):  # sums in the same order on any number of cores, as torch does here
        found = KMeans(count, n_init=10, random_state=seed).fit(rows)
    return torch.from_numpy(found.cluster_centers_), torch.from_numpy(found.labels_).long()


def familiar(own: Tensor, others: Tensor, fraction: float) -> Tensor:
    """Mask (s,) of the scores ``others`` (s,) that exceed a quantile of a client's own scores (m,)."""
    return others > torch.quantile(own, fraction)


def _median_distance(points: Tensor) -> float:
    """Return the median distance between distinct points, or 1 if there is only one."""
    apart = torch.pdist(points.double())
    apart = apart[apart > 0]
    return float(apart.median()) if len(apart) else 1.0
