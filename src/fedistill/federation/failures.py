"""The one rule for what fails in a round, whatever carries the frames.

- An exception in a simulated client's work, at the server or in evaluation ends the arm, with one message
  that names the round and the client or the server. The other arms go on.
- A client whose reply is invalid, or, on a network, a client that fails or cannot be reached, is left out of
  the round: its reason is recorded, its bytes count, and nothing changes that its link shares with the
  server; unless the method alone could tell, beside the others' replies (`Server.leave_out`).
- Where fewer clients than the quorum (`flower.quorum`) remain in a round, the arm ends and lists the reasons.
"""

import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from fedistill.errors import FedistillError, MissingMainGuard, RuntimeFailure, TrainingError

_MOST_CLIENTS, _MOST_REASONS, _LONGEST_REASON = 5, 5, 300
"""What a message lists: clients of one reason, reasons, and characters of each."""


@dataclass(frozen=True, slots=True)
class ClientFailure:
    """A client that was asked and does not take part in a round.

    Attributes:
        reason: why, for people.
        reached: whether what was sent to it has arrived.
    """

    reason: str
    reached: bool


@contextmanager
def failing_at(place: str) -> Iterator[None]:
    """Turn any exception into a `TrainingError` with its place, except where the machine failed.

    Raises:
        TrainingError: with the place that it has already, or else ``place``.
        RuntimeFailure, MissingMainGuard: unchanged, since they are of no single arm.
    """
    try:
        yield
    except (RuntimeFailure, MissingMainGuard):
        raise
    except TrainingError as error:
        # What a client's work raised reaches the server through its replies, and has its place.
        raise error if error.place else TrainingError(error.what, place) from error
    except FedistillError as error:
        raise TrainingError(str(error), place) from error
    except Exception as error:  # a user's own model, method or codec may raise anything
        if _was_stopped(error):
            raise KeyboardInterrupt from error
        raise TrainingError(describe_error(error), place) from error


def _was_stopped(error: BaseException | None) -> bool:
    """Whether an error arose while a request to stop was on its way out, as in torch's dispatch modes."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def describe_error(error: BaseException) -> str:
    """Return an unexpected error in words, with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def check_quorum(quorum: float, round: int, clients: int, failures: Mapping[int, ClientFailure]) -> None:
    """Check, before a round is recorded, that enough of its clients remain.

    Args:
        quorum: the share of a round's clients that must remain, 0 to 1.
        clients: how many were asked; ``failures``: those of them that are left out.

    Raises:
        TrainingError: too few remain; lists the reasons by client.
    """
    there = clients - len(failures)
    needed = quorum_of(quorum, clients)
    if there < needed:
        raise TrainingError(
            f"{there} of {clients} clients sent a valid reply, but flower.quorum asks for {needed}"
            f" ({list_reasons({client: failure.reason for client, failure in failures.items()})})",
            f"round {round}",
        )


def quorum_of(quorum: float, clients: int) -> int:
    """Return how many of so many clients are a quorum, at least one if there are any."""
    # 0.6 of 5 clients are 3, although 0.6 * 5 may be a little more in floating point.
    return min(clients, max(1, math.ceil(quorum * clients - 1e-9)))


def list_reasons(reasons: Mapping[int, str]) -> str:
    """Return the reasons with their clients; equal reasons once, long ones cut, and not all of very many."""
    by_reason: dict[str, list[int]] = {}
    for client, reason in sorted(reasons.items()):
        by_reason.setdefault(reason, []).append(client)
    shown = [f"{_clients(who)}: {_cut(why)}" for why, who in [*by_reason.items()][:_MOST_REASONS]]
    hidden = sum(len(who) for who in [*by_reason.values()][_MOST_REASONS:])
    if hidden:
        shown.append(f"{hidden} more {'client' if hidden == 1 else 'clients'} for other reasons")
    return "; ".join(shown)


def _clients(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"client {numbers[0]}"
    shown = [str(number) for number in numbers[:_MOST_CLIENTS]]
    if len(numbers) > _MOST_CLIENTS:
        return f"clients {', '.join(shown)} and {len(numbers) - _MOST_CLIENTS} more"
    return f"clients {', '.join(shown[:-1])} and {shown[-1]}"


def _cut(reason: str) -> str:
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
