"""Models that the server distils from a client's labels of public samples, to ask them about others.

A client labels public samples alone, so its server has no answer to a candidate. A model that has learned the
client's labels stands in for it. All of a round begin with one model, which has learned the mean of the
clients' labels; what is learned after that is the client's own.
"""

from collections.abc import Sequence

import torch

from fedistill.config.training import OptimizerConfig
from fedistill.federation.arm import ReadyArm
from fedistill.models import registry as models
from fedistill.rng import scoped, stream
from fedistill.studies.audit.evidence import Labels
from fedistill.training.loop import fit
from fedistill.training.losses import kl
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer

_COMMON_EPOCHS, _OWN_EPOCHS = 20, 10
_BATCH = 32
_OPTIMIZER = OptimizerConfig(name="adam", lr=0.002)


class Surrogates:
    """Surrogates of one round, all of the architecture with this name."""

    def __init__(self, arm: ReadyArm, name: str, round: int, labels: Sequence[Labels], seed: int) -> None:
        """Learn the mean of the clients' labels, over those that labelled a sample.

        Args:
            labels: of each client that sent any, at least one.
        """
        self._arm, self._name, self._round, self._seed = arm, name, round, seed
        public = arm.federation.public
        total, votes = torch.zeros(public, arm.task.signature.classes), torch.zeros(public)
        for one in labels:
            total.index_add_(0, one.places, one.probs)
            votes.index_add_(0, one.places, torch.ones(len(one.places)))
        places = votes.nonzero().flatten()
        mean = Labels(places, total[places] / votes[places, None])
        with scoped(seed, "audit surrogate"):
            built = models.build_model(name, arm.signature(name), seed, 0)
        self._common = self._learned(ModelState.of(built), mean, _COMMON_EPOCHS)

    def of(self, labels: Labels) -> ModelState:
        """Return the model that has learned a client's labels."""
        return self._learned(self._common, labels, _OWN_EPOCHS)

    def _learned(self, start: ModelState, labels: Labels, epochs: int) -> ModelState:
        if not len(labels.places):
            return start
        model = start.load_into(models.reusable(self._name, self._arm.signature(self._name)))
        inputs = self._arm.task.public_inputs(models.preprocessing(self._name))[labels.places]
        with scoped(self._seed, "audit surrogate layers"):
            fit(
                model,
                make_optimizer(_OPTIMIZER, model),
                inputs,
                lambda logits, at: kl(logits, labels.probs[at]),
                epochs=epochs,
                batch_size=_BATCH,
                generator=stream(self._seed, "audit surrogate", round=self._round),
            )
        return ModelState.of(model)
