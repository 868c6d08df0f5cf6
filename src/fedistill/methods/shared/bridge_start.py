"""How the participants of `bridge` come to a model that all have in common: votes, labels and starts."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from fedistill.communication.messages.bridge import LEVELS, VOTES, BridgeReply, BridgeRequest
from fedistill.methods.base import Reply
from fedistill.methods.participants import Client, Participant, Server
from fedistill.methods.shared.bridge_state import NONE, BridgeClient, BridgeServer, BridgeSettings
from fedistill.methods.shared.expertise import class_levels, expert_votes
from fedistill.methods.shared.label_refinement import classifier, refine
from fedistill.methods.shared.label_student import learn_labels
from fedistill.methods.shared.own_model import train_private
from fedistill.methods.shared.private_loss import private_loss
from fedistill.training.loop import predict
from fedistill.training.model_state import ModelState
from fedistill.training.optimizers import make_optimizer


def vote(
    state: BridgeClient, client: Client, received: BridgeRequest, samples: int, settings: BridgeSettings
) -> tuple[BridgeClient, BridgeReply]:
    """Return a client's levels and votes on the first public samples, as it was asked for them."""
    levels, votes = class_levels(client.data.labels, client.classes), NONE
    if received.asks & VOTES:
        module = client.load(client.initial_model())
        optimizer = make_optimizer(client.train.optimizer, module)
        train_private(module, optimizer, client, private_loss(client, module), settings.vote_epochs)
        predicted = predict(module, client.public_inputs()[:samples]).argmax(dim=1)
        votes = expert_votes(predicted, levels, received.thresholds)
        state = replace(state, model=ModelState.of(module), votes=votes)
    said = levels if received.asks & LEVELS else NONE
    return state, BridgeReply.telling(received.asks, said, votes)


def pool_and_learn(
    state: BridgeServer, server: Server, replies: Iterable[Reply[BridgeReply]], settings: BridgeSettings
) -> BridgeServer:
    """Pool the votes, learn from them, and make all starts if enough clients have voted.

    Labels may be refined by what samples look like before they are learned. If all clients abstain, the start
    is the common initial model.
    """
    before, state = state, state.with_votes(replies, equal=settings.weighting == "equal")
    if state is before:
        return state
    if settings.refine_labels:
        with server.computing():
            looks = classifier(server, torch.arange(len(state.labels)))
            state = replace(state, labels=refine(state.labels, state.evidence(), looks))
    if state.voted_share(server) >= settings.enough:
        return make_starts(state, server, settings)
    if not (state.labels < server.classes).any():
        return state
    return replace(state, model=learn_start(server, server.model, state.labels, settings))


def make_starts(state: BridgeServer, server: Server, settings: BridgeSettings) -> BridgeServer:
    """Learn the start of each architecture, and the server's model, from the labels in the state."""
    names = sorted({info.model for info in server.clients})
    starts = {name: learn_start(server, name, state.labels, settings) for name in names}
    own = starts.get(server.model) or learn_start(server, server.model, state.labels, settings)
    return replace(state.starting(starts), model=own)


def start_of(
    state: BridgeClient, client: Client, received: BridgeRequest, samples: int, settings: BridgeSettings
) -> Tensor:
    """Return the start (P,) that a client makes of the labels which it is sent.

    (0,) if the labels were coded given votes that it does not remember.
    """
    votes = state.votes if len(state.votes) else torch.full((samples,), client.classes)
    labels = received.pooled(votes, client.classes)
    return torch.zeros(0) if labels is None else learn_start(client, client.model, labels, settings).weights


def learn_start(site: Participant, name: str, labels: Tensor, settings: BridgeSettings) -> ModelState:
    """Return a model of this architecture that has learned labels (n,), C for none; the same for all."""
    epochs, batch_size = settings.distill_epochs, settings.distill_batch_size
    return learn_labels(site, name, labels, epochs, batch_size, settings.smoothing)
