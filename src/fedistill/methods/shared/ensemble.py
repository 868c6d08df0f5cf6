"""Shared by methods whose server distils the ensemble of the models that came back (FedDF, FedAUX)."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from fedistill.config.schema import Section
from fedistill.config.training import OptimizerConfig
from fedistill.methods.participants import Server
from fedistill.methods.shared.weight_averaging import SmallModelsServer
from fedistill.training.loop import fit
from fedistill.training.losses import distillation_loss
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


class EnsembleSettings(Section):
    epochs: int = Field(default=5, ge=1, description="epochs of distillation on the public set")
    batch_size: int = Field(default=128, ge=1, description="samples per step of distillation")
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", lr=1e-3)


def learn_from_ensemble(
    server: Server,
    own: ModelState,
    travelling: Mapping[str, ModelState],
    teacher: Tensor,
    settings: EnsembleSettings,
    fuse: bool,
) -> SmallModelsServer:
    """Return the server's models after distillation from an ensemble.

    Args:
        own: the server's own model, which learns if none of ``travelling`` has its architecture.
        travelling: averaged models by the name of their architecture.
        teacher: the ensemble's probabilities (N, C) on the public set.
        fuse: whether the averaged models learn too.
    """
    learned = dict(travelling)
    if fuse:
        learned = {name: _distil(server, name, mean, teacher, settings) for name, mean in learned.items()}
    model = learned.get(server.model)
    if model is None:
        model = _distil(server, server.model, own, teacher, settings)
    return SmallModelsServer(model, learned)


def _distil(
    server: Server, name: str, state: ModelState, teacher: Tensor, settings: EnsembleSettings
) -> ModelState:
    model = server.load(state, name)
    with server.computing():
        fit(
            model,
            make_optimizer(settings.optimizer, model),
            server.public_inputs(name),
            distillation_loss(teacher),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            generator=server.stream(f"distil {name}"),
        )
    return ModelState.of(model)
