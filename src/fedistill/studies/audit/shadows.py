"""Shadow clients: the method's own client step on samples that the server has, in place of a client's.

A shadow takes a client's place in the exchanges of the run: it is sent what that client was sent, trains as
the client does, and its message passes the same codec. Only its samples are others: as many as the client
has, of the test set, with the mix of classes that the auditor believes the client to have. So a shadow's
message is one that the client could have sent had it none of its members.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedistill.communication.messages.base import Message
from fedistill.communication.protocol.endpoints import ClientEndpoint, ServerEndpoint
from fedistill.data.samples import none_of
from fedistill.data.task import Labelled
from fedistill.federation.arm import ReadyArm
from fedistill.federation.ledger import SETUP_ROUND
from fedistill.methods.base import AnyState, NoState
from fedistill.methods.participants import Client
from fedistill.models import registry as models
from fedistill.privacy.local import private_message
from fedistill.privacy.mechanisms import LocalMechanism
from fedistill.rng import numpy_stream, scoped
from fedistill.state import State
from fedistill.studies.audit.candidates import HALVES
from fedistill.studies.audit.replay import Exchange


@dataclass(frozen=True)
class ShadowReply:
    """What a shadow sent in a round, as decoded, and its state after it."""

    message: Message
    state: AnyState


@dataclass(frozen=True)
class Shadow:
    """A shadow of a client.

    Attributes:
        half: the half of the test set that it was trained on.
        replies: by round, those of the exchanges that are kept.
    """

    half: int
    replies: dict[int, ShadowReply]


def draw_samples(
    labels: Tensor, half: Tensor, taken: int, shares: Tensor, count: int, generator: np.random.Generator
) -> Tensor:
    """Return places (count,) of samples of one half, with about these shares of classes.

    A class is drawn without repetition as long as there are samples of it, then again from the start. Shares
    of classes that the half has none of go to the others.

    Args:
        labels: (n,), ``half`` (n,): of all samples.
        taken: the half.
        shares: (C,), not all zero.
    """
    free = [torch.nonzero((half == taken) & (labels == one)).flatten() for one in range(len(shares))]
    weights = torch.tensor([float(shares[one]) if len(rows) else 0.0 for one, rows in enumerate(free)])
    if weights.sum() == 0:
        weights = torch.tensor([float(len(rows)) for rows in free])
    exact = weights.double() / weights.sum() * count
    counts = exact.floor().long()
    rest = (exact - counts).argsort(descending=True, stable=True)[: count - int(counts.sum())]
    counts[rest] += 1
    drawn = []
    for rows, wanted in zip(free, counts.tolist(), strict=True):
        orders = [generator.permutation(len(rows)) for _ in range(-(-wanted // max(len(rows), 1)))]
        if orders:
            drawn.append(rows[torch.from_numpy(np.concatenate(orders)[:wanted])])
    return torch.cat(drawn)


def shadows(
    arm: ReadyArm,
    client: int,
    exchanges: Sequence[Exchange],
    half: Tensor,
    shares: Tensor,
    count: int,
    seed: int,
) -> Iterator[Shadow]:
    """Yield shadows of a client, of the halves in turn.

    Args:
        exchanges: all that the client took part in.
        half: of each sample of the test set.
        shares: (C,), the mix of classes that the client is believed to have.
        seed: of the audit.
    """
    samples = arm.federation.clients[client].samples
    for number in range(count):
        generator = numpy_stream(seed, "audit shadow", client, number)
        taken = number % HALVES
        rows = draw_samples(arm.task.test.labels, half, taken, shares, samples, generator)
        noise_name = f"{arm.name}, shadow {number} of audit {seed}"
        yield Shadow(taken, _replies(arm, client, exchanges, rows, noise_name))


def _replies(
    arm: ReadyArm, client: int, exchanges: Sequence[Exchange], rows: Tensor, noise_name: str
) -> dict[int, ShadowReply]:
    """Play a shadow with these samples of the test set; return its replies in the rounds that are kept.

    Its noise, if the arm has some, is its own: the server does not know the client's.
    """
    keeps_nothing = arm.method.ClientState is NoState and not arm.coder.remembers
    state: AnyState = arm.method.start_client(_in_place_of(arm, client, SETUP_ROUND, 1, rows, noise_name))
    shared, kept, answers = {client: arm.initial_shared_state(client)}, State(), State()
    context = arm.message_context(client)
    replies = {}
    for one in exchanges:
        if keeps_nothing and one.message is None:
            continue  # its training would change nothing that is asked about
        own = _in_place_of(arm, client, one.round, one.local, rows, noise_name)
        server = ServerEndpoint(arm.coder, shared, arm.initial_shared_state, one.round, one.local)
        end = ClientEndpoint(arm.coder, kept, arm.initial_shared_state(client), one.round, client)
        received = None
        if one.received is not None:
            frame = server.send(client, client, one.received, context)
            received = end.receive(arm.method.downlinks, frame, context)
        with scoped(arm.seed, "layers", client, one.round):
            state, message = arm.method.client_step(state, own, received)
        if message is not None:
            if isinstance(arm.privacy, LocalMechanism):
                draws = own.stream(f"private answers of {noise_name}")
                message, answers = private_message(message, answers, arm.privacy, context, draws)
            decoded = server.receive(client, arm.method.uplinks, end.reply(message, context), context)
            assert decoded is not None
            if one.message is not None:
                replies[one.round] = ShadowReply(decoded, state)
        shared, kept = server.shared_states, end.kept()
    return replies


def _in_place_of(arm: ReadyArm, client: int, round: int, local: int, rows: Tensor, noise_name: str) -> Client:
    """Return the client with samples of the test set in place of its own."""
    task = arm.task
    data = Labelled(none_of(task.test.samples), task.test.labels[rows])
    return replace(
        arm.client(client, round, local),
        data=data,
        noise_name=noise_name,
        private=lambda model: task.test_inputs(models.preprocessing(model))[rows],
    )
