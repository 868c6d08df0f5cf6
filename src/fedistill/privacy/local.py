"""Labels that a client has made private: what it answered once of a public sample, it answers again."""

from dataclasses import replace

import torch
from torch import Tensor

from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.labels import Logits, SoftLabels, Votes
from fedistill.privacy.mechanisms import LocalMechanism
from fedistill.state import State

PLACES, ROWS = "places", "rows"
"""Keys of the answers that a client has given: of which public samples (m,), and what (m, C)."""


def private_message(
    message: Message,
    answers: State,
    mechanism: LocalMechanism,
    context: MessageContext,
    draws: torch.Generator,
) -> tuple[Message, State]:
    """Return what a client sends in place of its labels, and all answers that it has given so far.

    Args:
        answers: those before, empty at first.
    """
    assert isinstance(message, Votes | SoftLabels | Logits)
    assert context.sampled is not None
    rows = message.scores if isinstance(message, Logits) else message.probs
    sampled = torch.from_numpy(context.sampled(message.sampled_round))
    held = answers.get(PLACES)
    places = held if isinstance(held, Tensor) else torch.zeros(0, dtype=torch.int64)
    old = answers.get(ROWS)
    given = old if isinstance(old, Tensor) else torch.zeros(0, rows.shape[1])
    table = torch.zeros(context.population, rows.shape[1])
    answered = torch.zeros(context.population, dtype=torch.bool)
    table[places], answered[places] = given, True
    new = ~answered[sampled]
    if new.any():
        table[sampled[new]] = mechanism.randomised(rows[new], type(message), draws)
        answered[sampled[new]] = True
    after = answered.nonzero().flatten()
    kept: State = {PLACES: after, ROWS: table[after]}
    if isinstance(message, Logits):
        return replace(message, scores=table[sampled]), kept
    return replace(message, probs=table[sampled]), kept
