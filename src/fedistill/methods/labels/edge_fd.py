"""EdgeFD: clients label only public samples near the centroids of their own data."""

import torch
from pydantic import Field
from torch import Tensor

from fedistill.methods.shared.abstaining import Abstaining, AbstainingSettings, Score
from fedistill.methods.shared.density import Centroids


class EdgeFdSettings(AbstainingSettings):
    clusters: int = Field(default=10, ge=1, description="k, centroids of each client's private samples")


class EdgeFd(Abstaining):
    """Like `selective-fd`, with k-means in place of density ratios, and without a filter at the server.

    A client finds ``clusters`` centroids of its private samples. A public sample is familiar if its distance
    to the nearest of them is below the (1 - ``quantile``) quantile of the same distance over the client's own
    held-out samples. The server averages the labels of each sample over the clients that sent one (or pools
    them by another ``aggregation``), and all distil the result. Exchanged: (s, C) probabilities and the
    positions of their samples; s <= n differs by client and round. Bytes: ``b s C / 8`` each way, b bits per
    number, and at most about ``n / 8`` for the positions.

    With many private samples this is cheaper than a density ratio: k distances per public sample.

    The paper was available to us only as an abstract, which says that clients filter by k-means and the
    server does not filter. The threshold of familiarity is our choice, the same as in `selective-fd`.
    """

    name = "edge-fd"
    paper = "Mujtaba et al., 2025, arXiv 2508.14769 (abstract)"
    exchanges = "soft labels on public samples near the client's own data"
    byte_formula = "up = down = bsC/8, s ≤ n"
    Settings = EdgeFdSettings
    settings: EdgeFdSettings

    def score(self, references: Tensor, generator: torch.Generator) -> Score:
        return Centroids(references, generator, self.settings.clusters)
