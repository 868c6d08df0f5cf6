"""What the two sides of `tally-like` keep, and how they read classes that are coded given what they hold."""

from dataclasses import dataclass, field

from torch import Tensor

from fedistill.communication.messages.tally import TallyReply, TallyRequest, classes_given
from fedistill.communication.messages.weights import no_integers
from fedistill.methods.base import Reply
from fedistill.state import State
from fedistill.training.model_state import ModelState


@dataclass(frozen=True)
class TallyClient:
    """A client's model, its last votes (n,), and the round that they are of; none before its first votes."""

    model: ModelState
    votes: Tensor = field(default_factory=no_integers)
    voted: int = 0


@dataclass(frozen=True)
class TallyServer:
    """The state of the server.

    Attributes:
        model: the server's own model.
        merged: a model of each of the clients' architectures, by name.
        votes: (K, n) the last votes of each client, of the rounds ``voted`` (K,); 0 for none yet.
        labels: (n,) classes that clients have not learned yet, or (0,) if there are none.
        exchanges: how many there have been.
        aggregation: what the aggregation keeps.
    """

    model: ModelState
    merged: dict[str, ModelState]
    votes: Tensor
    voted: Tensor
    labels: Tensor = field(default_factory=no_integers)
    exchanges: int = 0
    aggregation: State = field(default_factory=dict)


def received_labels(state: TallyClient, received: TallyRequest) -> Tensor | None:
    """Return the labels (n,) that a client was sent, or None if it was sent none or cannot tell which.

    If a reply was lost, the server codes labels given earlier votes than the last.
    """
    if not received.labelled or received.base not in (0, state.voted):
        return None
    return classes_given(received.labels, state.votes if received.base else None)


def received_votes(state: TallyServer, reply: Reply[TallyReply]) -> Tensor:
    """Return the classes (n,) that a client voted for.

    Raises:
        FrameError: some equal labels, by what the client states, but it was not sent any.
    """
    return classes_given(reply.message.votes, state.labels if len(state.labels) else None)
