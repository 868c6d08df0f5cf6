"""The replies of a round, and which of its clients are left out of it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fedistill.communication.messages.base import Message
from fedistill.communication.protocol.endpoints import ServerEndpoint
from fedistill.communication.protocol.value_checks import TurnedAround
from fedistill.errors import FrameError
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult
from fedistill.federation.client_states import ClientStates
from fedistill.federation.failures import ClientFailure, check_quorum
from fedistill.federation.ledger import Entry, Ledger
from fedistill.methods.base import Reply
from fedistill.training.cost import Cost


@dataclass(frozen=True)
class RoundPlan:
    """What is known of a round before anything is sent.

    Attributes:
        local: rounds of local training behind the exchange, at least 1.
        clients: who takes part, in order; ``dropped``: those of them whose reply will be lost.
    """

    number: int
    local: int
    clients: list[int]
    dropped: list[int]


class Replies(Iterator[Reply[Message]]):
    """The replies of a round: each is decoded when it is asked for, and then let go.

    They come in client order, but for weights that point against those that were sent (`TurnedAround`): these
    are held back until all others have come. If more clients of a model send such than do not, what they were
    sent is wrong, and they come last; else they are refused.

    A client whose reply is refused for any reason (damaged, coded against another state, numbers that are
    not finite, `Message.check`, `Method.check_reply`) is left out: nothing is committed at the server, so
    that the next frame continues from the state before this exchange, which the client has kept. Iteration
    ends in a `TrainingError` where fewer clients than the quorum remain (`federation.failures`).

    Attributes:
        plan: of the round; ``endpoint``: of the server, with what it and the clients now remember.
        states: the new state of each client that has worked, those that are left out among them.
        work: seconds of each client's work, 0 for one that failed; ``costs``: what it took, likewise.
        stacked: how many of them were trained together with others.
        failures: the clients that are left out.
        heard: the clients whose message the server has decoded.
        waited: seconds of waiting for replies and decoding them.
    """

    def __init__(
        self,
        arm: ReadyArm,
        quorum: float,
        check: Callable[[int, Message], None],
        endpoint: ServerEndpoint,
        plan: RoundPlan,
        sent: list[bytes],
        results: Iterator[tuple[int, ClientResult | ClientFailure]],
        states: ClientStates | None = None,
    ) -> None:
        """Count what was sent.

        Args:
            quorum: the share of the clients that must remain.
            check: refuses a client's message by raising `FrameError`, before anything is committed.
            sent: a frame for each client; an empty one stands for nothing.
            states: takes the new states of clients, as they come.
        """
        self._arm, self._quorum, self._check, self._results = arm, quorum, check, results
        self.plan, self.endpoint = plan, endpoint
        self.states = ClientStates() if states is None else states
        self.work: list[float] = []
        self.costs: list[Cost] = []
        self.stacked = 0
        self.failures: dict[int, ClientFailure] = {}
        self.heard: list[int] = []
        self._traffic = Ledger()
        self._turned: list[tuple[int, ClientResult, TurnedAround]] = []
        self._found = self._find()
        self.waited = 0.0
        for client, frame in zip(plan.clients, sent, strict=True):
            if frame:
                self._traffic.count(plan.number, client, "down", frame)

    def __next__(self) -> Reply[Message]:
        started = time.perf_counter()
        try:
            reply = next(self._found, None)
        finally:
            self.waited += time.perf_counter() - started
        if reply is not None:
            return reply
        check_quorum(self._quorum, self.plan.number, len(self.plan.clients), self.failures)
        raise StopIteration

    def _find(self) -> Iterator[Reply[Message]]:
        for client, result in self._results:
            reply = self._receive(client, result)
            if reply is not None:
                yield reply
        votes = Counter(self._arm.travelling(client) for client in self.heard)
        votes.subtract(self._arm.travelling(client) for client, _, _ in self._turned)
        for client, result, error in self._turned:
            if votes[self._arm.travelling(client)] < 0:
                reply = self._reply(client, result, even_turned=True)
                if reply is not None:
                    yield reply
            else:
                self._refuse(client, error)

    def finish(self) -> None:
        """Receive what the server step has not asked for: those bytes have crossed all the same."""
        for _ in self:
            pass

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Count clients as missing whose replies the server step has left out, and check the quorum again.

        Those that it has not received are missing already.
        """
        for client, reason in reasons.items():
            if client not in self.heard:
                continue
            self.failures[client] = ClientFailure(f"its reply is left out: {reason}", reached=True)
        check_quorum(self._quorum, self.plan.number, len(self.plan.clients), self.failures)

    def crossed(self) -> list[Entry]:
        """Return the frames of the round, up and down; a frame that never reached its client is not one."""
        unreached = {client for client, failure in self.failures.items() if not failure.reached}
        return [entry for entry in self._traffic.entries if entry.client not in unreached]

    def _receive(self, client: int, result: ClientResult | ClientFailure) -> Reply[Message] | None:
        """Note what a client brings; return its reply, or None if there is none for the server step."""
        if isinstance(result, ClientFailure):
            self.failures[client] = result
            self.work.append(0.0)
            self.costs.append(Cost())
            return None
        self.states[client] = result.state
        self.work.append(result.seconds)
        self.costs.append(result.cost)
        self.stacked += result.stacked
        if not result.frame:
            return None
        self._traffic.count(self.plan.number, client, "up", result.frame)
        return self._reply(client, result)

    def _reply(
        self, client: int, result: ClientResult, *, even_turned: bool = False
    ) -> Reply[Message] | None:
        if client in self.plan.dropped:
            return None
        try:
            message = self._decode(client, result.frame, even_turned)
        except TurnedAround as error:
            self._turned.append((client, result, error))
            return None
        except FrameError as error:
            self._refuse(client, error)
            return None
        if message is None:
            return None
        self.heard.append(client)
        return Reply(client, message)

    def _refuse(self, client: int, error: FrameError) -> None:
        self.failures[client] = ClientFailure(f"its reply is refused: {error}", reached=True)

    def _decode(self, client: int, frame: bytes, even_turned: bool) -> Message | None:
        """Return the client's message, or None if it asks to be sent everything again."""
        return self.endpoint.receive(
            client,
            self._arm.method.uplinks,
            frame,
            self._arm.message_context(client),
            lambda message: self._check(client, message),
            even_turned=even_turned,
        )
