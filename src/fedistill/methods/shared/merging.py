"""Shared by methods whose server merges clients' models by architecture and has a model of its own."""

from collections.abc import Mapping

import torch

from fedistill.methods.participants import Server
from fedistill.methods.shared.public_labels import DistillSettings, distil
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


def learn_from_merged(
    server: Server, model: ModelState, merged: Mapping[str, ModelState], settings: DistillSettings
) -> ModelState:
    """Return the server's model after a merge: the merged one of its architecture, if there is one.

    Otherwise ``model``, distilled from the mean of the merged models' probabilities on the public set.
    """
    if server.model in merged:
        return merged[server.model]
    with server.computing():
        rows = [predict(server.load(held, name), server.public_inputs(name)) for name, held in merged.items()]
        teacher = torch.stack([logits.softmax(dim=1) for logits in rows]).mean(dim=0)
        module = server.load(model)
        optimizer = make_optimizer(server.train.optimizer, module)
        distil(server, module, optimizer, server.public_inputs(), teacher, settings)
    return ModelState.of(module)
