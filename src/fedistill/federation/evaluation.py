"""The views: which model, on which data.

- ``server@global``: the server's model on the global test set; where several models answer for the server
  (`Method.server_eval_models`), their mean.
- ``client@global``: the clients' own models on the global test set, mean over all clients.
- ``client@own``: the same, each on a test set with its own label distribution: the global test set,
  its classes weighted as in the client's private data. That is the expected value over all test sets
  that could be drawn so, without the noise of drawing one.

All clients count, also those that were absent: their model is the one they have. Nothing is picked by
test accuracy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedistill.training.loop import predict


def correct_by_class(
    model: nn.Module, inputs: Tensor, labels: Tensor, classes: int, batch_size: int
) -> Tensor:
    """Count the test samples (n, ...) of each class (n,) that a model gets right, int64 (C,)."""
    right = predict(model, inputs, batch_size).argmax(dim=1) == labels
    return torch.bincount(labels[right], minlength=classes)


def views(
    server: Tensor | None, clients: Sequence[Tensor], test: Tensor, private: Tensor
) -> dict[str, float]:
    """Return the accuracy, 0 to 1, of each view that there is.

    Args:
        server: correct answers of the server's model by class (C,), or their mean over several, or None.
        clients: the same for each client's model; empty if clients have none.
        test: test samples by class (C,).
        private: private samples by client and class (clients, C).
    """
    found: dict[str, float] = {}
    total = int(test.sum())
    if server is not None:
        found["server@global"] = float(server.sum()) / total
    if clients:
        right = torch.stack(list(clients)).double()
        found["client@global"] = float((right.sum(dim=1) / total).mean())
        seen = test > 0
        share = private[:, seen].double()
        # A client all of whose classes are missing from the test set has nothing to be measured on.
        measured = share.sum(dim=1) > 0
        share = share[measured] / share[measured].sum(dim=1, keepdim=True)
        own = (share * right[measured][:, seen] / test[seen]).sum(dim=1)
        if len(own):
            found["client@own"] = float(own.mean())
    return found
