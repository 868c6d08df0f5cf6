"""Random mask: a part of the weights, which changes with each merge, is trained and sent."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedistill.communication.messages.masked import (
    MaskedReply,
    MaskedRequest,
    steps_as_bytes,
)
from fedistill.communication.messages.weights import Weights
from fedistill.methods.base import Needs, Reply
from fedistill.methods.participants import Client, ClientInfo, Server
from fedistill.methods.shared.masked_merges import (
    Changes,
    MaskSettings,
    MergesParts,
    Trail,
    catch_up,
    check_turn,
    merge,
)
from fedistill.methods.shared.weight_averaging import weights_message
from fedistill.training.model_state import ModelState

_NONE = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class MaskClient:
    """The weights (P,) that all clients follow, and the last merge in these."""

    weights: Tensor
    merges: int = 0


@dataclass(frozen=True)
class MaskServer:
    """The mean before it was rounded, what clients follow, and the last merge that each (K,) has."""

    model: ModelState
    trail: Trail
    known: Tensor


class RandomMask(MergesParts[MaskedReply, MaskedRequest, MaskServer, MaskClient]):
    """Clients train and send the same random part of the weights; the server averages by number of samples.

    Each merge has another part: ``trained_share`` of the weights of matrices and kernels, and all others. It
    follows from the seed, so no places are sent. Changes are rounded to a whole number of steps, without
    error feedback: what is not sent has not been trained. Exchanged: rounded changes, both ways. Bytes: about
    ``s|θ|H/8`` each way per client and merge, s the share, H about 1.2 bits at steps of twice the root mean
    square. A client that was away is sent the changes of all merges that it has missed.

    Departures from the paper: one mask for all clients in a merge, so that the mean is of the same weights,
    and goes down as a change of these; changes are entropy-coded; a larger learning rate (``lr_factor``),
    since few weights move. The arm's codec codes nothing here.
    """

    name = "random-mask"
    paper = "Konečný et al., 2016, arXiv 1610.05492, section 2 (random mask)"
    exchanges = "changes of a random part of the weights"
    byte_formula = "up = down = s|θ|H/8, H about 1.2 bits"
    beyond_model = "changes of a part of the weights, which gradients of single records do not leave out"
    uplink = MaskedReply
    downlink = MaskedRequest
    ServerState = MaskServer
    ClientState = MaskClient
    needs = Needs(models="one architecture")
    under_skew = ("loss",)
    Settings = MaskSettings
    settings: MaskSettings

    def broadcast_group(self, state: MaskServer, info: ClientInfo) -> Hashable:
        return int(state.known[info.id])

    def start_server(self, server: Server) -> MaskServer:
        model = server.initial_model()
        known = torch.zeros(len(server.clients), dtype=torch.int64)
        return MaskServer(model, Trail.at(model.weights), known)

    def start_client(self, client: Client) -> MaskClient:
        return MaskClient(client.common_model().weights)

    def send(self, state: MaskServer, server: Server, client: int) -> MaskedRequest:
        known = int(state.known[client])
        steps, changes = state.trail.since(known)
        return MaskedRequest(state.trail.merges + 1, known, steps_as_bytes(steps), changes)

    def compared(self, state: MaskServer, server: Server, client: int) -> Weights:
        return weights_message(ModelState(state.trail.weights))

    def client_step(
        self, state: MaskClient, client: Client, received: MaskedRequest | None
    ) -> tuple[MaskClient, MaskedReply]:
        assert received is not None
        mask = self.masks(client.federation, client.model)
        weights = catch_up(state.weights, state.merges, received, mask)
        if weights is None:  # it begins again, and is told all merges in the next round
            return self.start_client(client), MaskedReply(0, 0, _NONE)
        changes = self.train_merge(client, weights, received.turn)[1]
        reply = MaskedReply(received.turn, changes.step, changes.multiples)
        return MaskClient(weights, received.turn - 1), reply

    def server_step(
        self, state: MaskServer, server: Server, replies: Iterable[Reply[MaskedReply]]
    ) -> MaskServer:
        turn, known = state.trail.merges + 1, state.known.clone()
        came: list[tuple[int, Changes, float]] = []
        for reply in replies:
            message = reply.message
            known[reply.client] = turn - 1 if message.turn else 0
            if message.turn:
                samples = max(server.clients[reply.client].samples, 1)
                came.append((reply.client, Changes(message.step, message.changes), samples))
        trained = self.masks(server.federation, server.model)(turn)
        merged = merge(state.trail, came, trained, self.settings)
        if merged is None:
            return replace(state, known=known)
        server.note_reliability(merged.reliability)
        return MaskServer(ModelState(merged.weights), merged.trail, known)

    def check_reply(self, state: MaskServer, server: Server, reply: Reply[MaskedReply]) -> None:
        if reply.message.turn:
            check_turn(reply.message.turn, state.trail)
