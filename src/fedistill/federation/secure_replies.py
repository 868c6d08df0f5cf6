"""The replies of a round with secure sums: keys first, and after three more turns a sum, of which alone the
server's step learns.

A client whose frame is refused, or who cannot be reached in a turn, is left out from then on. Its integers
are in the sum if they had arrived. Where fewer remain than `SecureSums.needed`, the arm ends, with nothing
unmasked. `sampling.dropout` loses a client's masked integers, which is the hardest loss: all others have then
masked theirs with masks that they share with it.
"""

import time
from collections.abc import Callable, Mapping

from fedistill.communication.kinds import Kind
from fedistill.communication.messages.base import Message
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.shared_state import SharedState
from fedistill.communication.secure_aggregation.collector import Collector
from fedistill.communication.secure_aggregation.total import SecureTotal
from fedistill.config.secure_sums import LEAST
from fedistill.errors import FrameError
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Executor, Jobs
from fedistill.federation.failures import ClientFailure, check_quorum, failing_at
from fedistill.federation.replies import Replies
from fedistill.methods.base import Reply

_TOO_FEW = "so few clients have something to add that their sum would tell what each of them sends"


class SecureReplies(Replies):
    """The replies of a round, none of which the server reads; `total` returns their sum."""

    def total(self, executor: Executor) -> SecureTotal | None:
        """Take all turns; return the sum, or None if no client has anything to add.

        Raises:
            TrainingError: too few clients remain, or what they have sent does not fit together.
        """
        assert self._arm.secure_sums is not None
        self._collector = Collector(self.plan.number, self._arm.addends, self._arm.secure_sums)
        self._kept: dict[int, bytes] = {}
        self._shared: dict[int, SharedState] = {}
        self.finish()
        with failing_at(f"round {self.plan.number}, secure sum"):
            return self._sum(executor)

    def _sum(self, executor: Executor) -> SecureTotal | None:
        server = self._collector
        if len(server.members) < LEAST:
            for client in server.members:
                self._leave_out(client, _TOO_FEW)
            self._check_quorum()
            return None
        keys = server.keys()
        self._turn(executor, dict.fromkeys(server.members, keys), server.take_shares)
        server.check_enough(len(server.sharing), "shares of their secrets")
        self._turn(executor, {one: server.shares(one) for one in server.sharing}, self._take_addends)
        server.check_enough(len(server.added), "what they add")
        unmasking = server.unmasking()
        answered = self._turn(executor, dict.fromkeys(server.added, unmasking), server.take_unmasking)
        server.check_enough(answered, "shares to unmask the sum")
        self._check_quorum()
        total = server.total()
        for client in total.clients:
            self.endpoint.shared_states[client] = self._shared[client]
        self.heard = list(total.clients)
        return total

    def _reply(
        self, client: int, result: ClientResult, *, even_turned: bool = False
    ) -> Reply[Message] | None:
        """Take the keys of a client; nobody reads a reply."""
        try:
            frame = frames.decode(result.frame)
            if frame.kind == Kind.REFRESH:
                return super()._reply(client, result)
            self._shared[client] = self.endpoint.acknowledged(client, frame.state_id)
            self._collector.take_keys(client, result.frame)
            self._kept[client] = result.kept
        except FrameError as error:
            self._leave_out(client, f"its reply is refused: {error}")
        return None

    def _turn(self, executor: Executor, down: Mapping[int, bytes], take: Callable[[int, bytes], None]) -> int:
        """Send clients their frames and take their answers; return how many were taken."""
        number, clients = self.plan.number, list(down)
        jobs = Jobs(clients, self._kept, [down[client] for client in clients])
        taken, started = 0, time.perf_counter()
        results = list(executor.run_clients(self._arm.name, number, jobs))
        self.waited += time.perf_counter() - started
        for client, result in zip(clients, results, strict=True):
            if isinstance(result, ClientFailure):
                if result.reached:
                    self._traffic.count(number, client, "down", down[client])
                self._leave_out(client, result.reason)
                continue
            self._traffic.count(number, client, "down", down[client])
            self._traffic.count(number, client, "up", result.frame)
            self._kept[client] = result.kept
            self.work[self.plan.clients.index(client)] += result.seconds
            try:
                take(client, result.frame)
            except FrameError as error:
                self._leave_out(client, f"its reply is refused: {error}")
            else:
                taken += 1
        return taken

    def _take_addends(self, client: int, data: bytes) -> None:
        if client not in self.plan.dropped:
            self._collector.take_addends(client, data)

    def _leave_out(self, client: int, reason: str) -> None:
        self.failures[client] = ClientFailure(reason, reached=True)

    def _check_quorum(self) -> None:
        check_quorum(self._quorum, self.plan.number, len(self.plan.clients), self.failures)
