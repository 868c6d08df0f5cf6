"""The views: which model, on which data.

- ``server@global``: the server's model on the global test set; where several models answer for the server
  (`Method.server_eval_models`), their mean.
- ``client@global``: the clients' own models on the global test set, mean over all clients.
- ``client@own``: the same, each on the samples that the client has held out of its own
  (`task.own_test_share`). Where nobody holds out any, each is measured on a test set with its own label
  distribution: the global test set, its classes weighted as in the client's private data. That is the
  expected value over all test sets that could be drawn so, without the noise of drawing one.
- ``server@own``: the server's model on the samples that each client has held out, mean over the clients; only
  if they do, and the server has one model that needs nothing of the clients.

All clients count, also those that were absent: their model is the one they have. Nothing is picked by
test accuracy. A mean is over the clients for whose samples a metric is defined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor
from typing_extensions import TypedDict  # pydantic checks results.json, and cannot check the one of `typing`

from fedistill.federation.metrics import ACCURACY, Metric
from fedistill.federation.scores import Matrix, Scores, Values

SERVER_OWN = "server@own"
VIEWS = ("server@global", "client@global", "client@own", SERVER_OWN)
OWN_VIEWS = VIEWS[2:]
"""Those of single clients, each measured on its own samples."""


class SpreadOfSites(TypedDict):
    """How clients differ: the worst value, the sample standard deviation (n - 1) if there are two, and n."""

    worst: float
    deviation: float | None
    measured: int


class Bytes(TypedDict):
    """Bytes that crossed, summed over clients."""

    up: int
    down: int


class Measured(TypedDict, total=False):
    """What an evaluation found beside the accuracy of the views; what is empty is absent.

    ``metrics``: the values of the views, by metric. ``confusion``: the confusion matrix by view, summed over
    its models; rows are true classes. ``sites``: by metric and view, the value of each client, or None.
    ``spread``: how these differ. ``evaluation``: what ``server@own`` has made cross.
    """

    metrics: dict[str, dict[str, float]]
    confusion: dict[str, Matrix]
    sites: dict[str, dict[str, list[float | None]]]
    spread: dict[str, dict[str, SpreadOfSites]]
    evaluation: Bytes


@dataclass(frozen=True)
class Evaluated:
    """The scores that an evaluation is made of.

    Attributes:
        server: of each model that answers for the server, on the global test set.
        clients: of the clients' own models, by client in order.
        sites: of the server's model at the clients, by client in order.
    """

    server: Sequence[Scores]
    clients: Mapping[int, Scores]
    sites: Mapping[int, Scores]

    def by_view(self) -> dict[str, list[Values]]:
        """Return the values of each view's models."""
        clients = self.clients.values()
        found = (
            [one.everywhere for one in self.server],
            [one.everywhere for one in clients],
            [one.own for one in clients],
            [one.own for one in self.sites.values()],
        )
        return dict(zip(VIEWS, found, strict=True))

    def of_clients(self) -> dict[str, Mapping[int, Scores]]:
        """Return the scores of the views that are measured at single clients."""
        return dict(zip(OWN_VIEWS, (self.clients, self.sites), strict=True))

    def matrices(self) -> dict[str, Matrix]:
        """Return the confusion matrix of each view that has any, summed over its models."""
        groups = (self.server, self.clients.values(), self.clients.values(), self.sites.values())
        found: dict[str, Matrix] = {}
        for view, group in zip(VIEWS, groups, strict=True):
            place = "own" if view in OWN_VIEWS else "everywhere"
            matrices = [torch.tensor(one.confusion[place]) for one in group if place in one.confusion]
            if matrices:
                found[view] = torch.stack(matrices).sum(dim=0).tolist()
        return found


def views(
    server: Tensor | None, clients: Sequence[Tensor], test: Tensor, private: Tensor
) -> dict[str, float]:
    """Return the accuracy, 0 to 1, of each view that there is, where clients hold out nothing.

    Args:
        server: correct answers of the server's model by class (C,), or their mean over several, or None.
        clients: the same for each client's model; empty if clients have none.
        test: test samples by class (C,).
        private: private samples by client and class (clients, C).
    """
    found = global_views(server, clients, test)
    if clients:
        right = torch.stack(list(clients)).double()
        seen = test > 0
        share = private[:, seen].double()
        # A client all of whose classes are missing from the test set has nothing to be measured on.
        measured = share.sum(dim=1) > 0
        share = share[measured] / share[measured].sum(dim=1, keepdim=True)
        own = (share * right[measured][:, seen] / test[seen]).sum(dim=1)
        if len(own):
            found["client@own"] = float(own.mean())
    return found


def global_views(server: Tensor | None, clients: Sequence[Tensor], test: Tensor) -> dict[str, float]:
    """Return the accuracy of the views on the global test set; the arguments are those of `views`."""
    found: dict[str, float] = {}
    total = int(test.sum())
    if server is not None:
        found["server@global"] = float(server.sum()) / total
    if clients:
        right = torch.stack(list(clients)).double()
        found["client@global"] = float((right.sum(dim=1) / total).mean())
    return found


def own_views(evaluated: Evaluated) -> dict[str, float]:
    """Return the accuracy of the views on what clients have held out, the mean over those that have any."""
    found = {
        view: mean([one.own for one in scores.values()], ACCURACY)
        for view, scores in evaluated.of_clients().items()
    }
    return {view: value for view, value in found.items() if value is not None}


def mean(values: Sequence[Values], metric: str) -> float | None:
    """Return the mean of a metric over the values that are defined, or None if none is."""
    known = [value for one in values if (value := one.get(metric)) is not None]
    return fmean(known) if known else None


def measured(evaluated: Evaluated, metrics: Sequence[Metric]) -> Measured:
    """Return the values of metrics besides accuracy, and the confusion matrices."""
    found: Measured = {}
    values = {
        metric.name: {
            view: value
            for view, models in evaluated.by_view().items()
            if (value := mean(models, metric.name)) is not None
        }
        for metric in metrics
    }
    if metrics:
        found["metrics"] = values
    if matrices := evaluated.matrices():
        found["confusion"] = matrices
    return found


def by_site(evaluated: Evaluated, metrics: Sequence[Metric], clients: int, hidden: bool) -> Measured:
    """Return each client's values on its own samples, and how they differ; only that if sites are hidden."""
    better = {ACCURACY: "higher", **{metric.name: metric.better for metric in metrics}}
    sites: dict[str, dict[str, list[float | None]]] = {name: {} for name in better}
    spread: dict[str, dict[str, SpreadOfSites]] = {name: {} for name in better}
    for name, direction in better.items():
        for view, scores in evaluated.of_clients().items():
            values = [scores[client].own.get(name) if client in scores else None for client in range(clients)]
            known = [value for value in values if value is not None]
            if known:
                sites[name][view] = values
                spread[name][view] = {
                    "worst": min(known) if direction == "higher" else max(known),
                    "deviation": stdev(known) if len(known) > 1 else None,
                    "measured": len(known),
                }
    return {"spread": spread} if hidden else {"sites": sites, "spread": spread}
