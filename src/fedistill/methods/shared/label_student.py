"""Shared by methods in which a model is trained from scratch on classes of public samples."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.config.schedules import Cosine
from fedistill.methods.participants import Participant
from fedistill.rng import SERVER, scoped, stream
from fedistill.training.loop import fit
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer

_FALLING = Cosine(name="cosine", over="steps")


def learn_labels(
    site: Participant, name: str, labels: Tensor, epochs: int, batch_size: int, smoothing: float
) -> ModelState:
    """Return a model of this architecture trained on classes (n,) of the public samples, smoothed.

    Classes of C or more stand for none. Streams and learning rate do not depend on the participant or the
    round, so all participants get the same model. The rate falls along half a cosine.
    """
    labelled = (labels < site.classes).nonzero().flatten()
    if not len(labelled):
        return site.common_model(name)
    targets = labels[labelled]
    with scoped(site.seed, "start"):
        module = site.load(site.common_model(name), name)
        fit(
            module,
            make_optimizer(site.federation.optimizer.model_copy(update={"schedule": _FALLING}), module),
            site.public_inputs(name)[labelled],
            lambda logits, at: cross_entropy(logits, targets[at], label_smoothing=smoothing),
            epochs=epochs,
            batch_size=batch_size,
            generator=stream(site.seed, "start", SERVER),
        )
    return ModelState.of(module)
