"""EdgeFD: clients answer what is near the centroids of their own data."""

import torch
from pydantic import Field
from torch import Tensor

from fedistill.methods.shared.abstaining import Abstaining, AbstainingSettings, Score
from fedistill.methods.shared.density import Centroids


class EdgeFdSettings(AbstainingSettings):
    clusters: int = Field(default=10, ge=1, description="k, centroids of a client's private samples")


class EdgeFd(Abstaining):
    """As `selective-fd`, with k-means in place of density ratios, and no filter at the server.

    A client finds ``clusters`` centroids of private samples. Familiar is a public sample that is nearer to
    one of them than the farthest ``quantile`` of the client's own held-out samples are. The server averages,
    sample by sample, those who answered, or pools them by another ``aggregation``; all distil that.
    Exchanged: (s, C) probabilities and which samples they are of; s <= n differs by client and round.
    Bytes: ``b s C / 8`` each way, b bits a number, and at most about ``n / 8`` to say which samples.

    Cheaper than a density ratio where there are many private samples: k distances for each public sample.

    Departs from what we could read: of the paper its abstract alone, which says that clients filter by
    k-means and that the server does not. How near is near enough is ours, as in `selective-fd`.
    """

    name = "edge-fd"
    paper = "Mujtaba et al., 2025, arXiv 2508.14769 (abstract)"
    exchanges = "soft labels on public samples that are near one's own"
    byte_formula = "up = down = bsC/8, s ≤ n"
    Settings = EdgeFdSettings
    settings: EdgeFdSettings

    def score(self, references: Tensor, generator: torch.Generator) -> Score:
        return Centroids(references, generator, self.settings.clusters)
