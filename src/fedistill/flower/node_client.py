"""One client of a SuperNode: its part of a round, and its state on the node's own disk.

Flower starts a process for each message, so all that a client is between two messages lies in its folder: its
state after each of the last rounds that it worked in, and the newest model of each arm.
"""

import secrets
from pathlib import Path

from fedistill.config.schema import Experiment
from fedistill.config.task import Source
from fedistill.errors import TrainingError
from fedistill.experiment.saved_models import about_site, save_client_model
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client import ClientResult, is_secure_turn, run_client
from fedistill.federation.client_evaluation import evaluate_client
from fedistill.federation.scores import Scores
from fedistill.flower.serde import Answer
from fedistill.state import write_file


class NodeClient:
    """A client in one arm of a run, in a folder of its own."""

    def __init__(
        self, client: int, arm: ReadyArm, experiment: Experiment, own: Source | None, folder: Path
    ) -> None:
        """
        Args:
            own: where its own samples are, if it has any.
            folder: of the client, in this run.
        """
        self._client, self._arm, self._experiment, self._own = client, arm, experiment, own
        self._folder = folder
        place = str([one.name for one in experiment.arms].index(arm.name))
        self._states, self._models = folder / place, folder / "models" / place

    def work(self, round: int, frame: bytes) -> Answer:
        """Do the client's part of a round; keep its state before and after.

        Later turns of a secure sum are a part of the round, but no work: `_next_turn`.
        """
        arm = self._arm
        if arm.secure_sums is not None and is_secure_turn(frame):
            return self._next_turn(round, frame)
        for left in self._folder.glob("*/secure-sum"):
            left.unlink()  # of a sum that ended without this client
        outcome = self._run(round, frame, self._state(before=round))
        self._keep_for_next_turn(outcome.kept)
        write_file(self._states / f"{round}.safetensors", outcome.state)
        for kept_round, path in self._kept():
            if kept_round > round:  # of a future that the server has lost
                path.unlink()
        # The last, and those of rounds that a server may have lost and begins again.
        kept = self._experiment.checkpoint.every + 1
        for _, path in self._kept()[:-kept]:
            path.unlink()
        self._save_model(round, outcome.state)
        words: dict[str, float | str | list[int]] = {
            "seconds": outcome.seconds,
            "cost": [outcome.cost.multiply_adds, outcome.cost.memory],
        }
        due = round, arm.local_rounds(round, frame)
        if arm.evaluates(*due) and arm.evaluates_clients(*due):
            scores = evaluate_client(arm, self._client, outcome.state)
            words |= {"counts": scores.correct, **_words(scores)}
        return Answer(outcome.frame, words)

    def evaluate(self, frame: bytes) -> Answer:
        """Evaluate the client's own model, or the server's in the frame on the client's samples."""
        scores = evaluate_client(self._arm, self._client, self._state(before=None), frame)
        if frame:
            return Answer(scores.encode())
        return Answer(words={"counts": scores.correct, **_words(scores)})

    def _next_turn(self, round: int, frame: bytes) -> Answer:
        """Answer the server's frame of a turn of a secure sum, from what was kept after the turn before."""
        taken = self._between_turns.with_name("secure-sum-taken")
        try:  # only one of two orders that come at once finds it: each turn is answered once
            self._between_turns.rename(taken)
            kept = taken.read_bytes()
            taken.unlink()
        except FileNotFoundError:
            kept = b""
        outcome = self._run(round, frame, kept)
        self._keep_for_next_turn(outcome.kept)
        return Answer(outcome.frame, {"seconds": outcome.seconds})

    def _run(self, round: int, frame: bytes, state: bytes) -> ClientResult:
        try:
            return run_client(self._arm, self._client, round, state, frame, secrets.token_bytes)
        except TrainingError as error:  # the server knows its round and its client
            raise TrainingError(error.what) from error

    def _keep_for_next_turn(self, kept: bytes) -> None:
        """Keep the secrets of a secure sum for its next turn; after the last one, or without one, none."""
        if kept:
            write_file(self._between_turns, kept)
        else:
            self._between_turns.unlink(missing_ok=True)

    @property
    def _between_turns(self) -> Path:
        return self._states / "secure-sum"

    def _save_model(self, round: int, state: bytes) -> None:
        """Leave the newest model where its site can use it."""
        if self._arm.method.has_client_models:
            about = about_site(self._arm, round)
            save_client_model(
                self._models, self._experiment, self._arm, self._client, state, about, own=self._own
            )

    def _state(self, before: int | None) -> bytes:
        """The newest state, of rounds before one."""
        kept = [path for round, path in self._kept() if before is None or round < before]
        return kept[-1].read_bytes() if kept else b""

    def _kept(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self._states.glob("*.safetensors"))


def _words(scores: Scores) -> dict[str, str]:
    """What an answer says of scores beside the counts; nothing where there is nothing else."""
    return {"scores": scores.encode().decode()} if scores.beyond_counts() else {}
