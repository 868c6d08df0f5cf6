"""DS-FL: soft labels on public samples up, their sharpened mean down."""

from torch import Tensor

from fedistill.aggregation.labels import Era
from fedistill.aggregation.registry import AnyAggregation
from fedistill.communication.messages.labels import SoftLabels
from fedistill.methods.shared.public_labels import DrawnLabels, DrawnSettings


class DsFlSettings(DrawnSettings):
    aggregation: AnyAggregation = Era()


class DsFl(DrawnLabels[SoftLabels, SoftLabels]):
    """Clients of any architecture send probabilities on public samples; all learn their sharpened mean.

    A round: distil the last global labels (KL), train on private data, predict the next public samples.
    The server averages the *probabilities*, reduces the entropy of the mean (softmax of the mean divided by
    T) and distils its own model, of any size, from the result; ``aggregation`` selects other ways to pool.
    Exchanged: (n, C) probabilities each way; the samples are drawn from a shared seed. Bytes: ``b n C / 8``
    each way, b bits per number.

    With ``start``, clients send one-shot statistics first (see `gaussian`, `ridge` and `naive-bayes`); what
    these say of the public samples are the first labels.

    A client that was absent learns only from the newest global labels, not from those it missed.
    """

    name = "dsfl"
    paper = "Itahara et al., 2020, arXiv 2008.06180; order of steps as in its authors' SCARLET code"
    exchanges = "soft labels on public samples"
    byte_formula = "up = down = bnC/8"
    beyond_model = None
    uplink = SoftLabels
    downlink = SoftLabels
    Settings = DsFlSettings
    settings: DsFlSettings

    def labels(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)
