"""Callbacks of a run on a network: told by who waits for it what a run in this process would tell them."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from fedistill.errors import RuntimeFailure
from fedistill.experiment.callbacks import Callbacks
from fedistill.experiment.findings import Finding
from fedistill.experiment.progress import Watcher
from fedistill.experiment.results import ResultsJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.experiment.runner import describe_arm
from fedistill.experiment.summary import results_json
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_states import ClientStates
from fedistill.federation.history import ArmRun, RoundRecord
from fedistill.federation.setup import setup_ledger


class ToldCallbacks:
    """A `Watcher` that hands on how a run goes on, and tells callbacks of it.

    Rounds are put together from their events: what clients and server keep stays where it is.
    """

    def __init__(
        self, callbacks: Callbacks, watcher: Watcher, folder: RunFolder, arms: Sequence[ReadyArm]
    ) -> None:
        self._callbacks, self._watcher, self._folder = callbacks, watcher, folder
        self._arms = {arm.name: arm for arm in arms}
        self._runs = {arm.name: ArmRun(0, None, ClientStates(), setup_ledger(arm)) for arm in arms}
        self._errors: dict[str, str] = {}
        for name in self._arms:
            for record in folder.records(name) if folder.begun else []:
                self._add(name, record)

    def findings(self, findings: Sequence[Finding]) -> None:
        self._watcher.findings(findings)

    def arm(self, name: str, rounds: int, done: int) -> None:
        self._watcher.arm(name, rounds, done)

    def round(self, name: str, record: RoundRecord) -> None:
        self._watcher.round(name, record)
        arm, run = self._arms[name], self._add(name, record)
        self._callbacks.round_end(arm, run, record)
        if run.round == arm.rounds:
            self._end(name)

    def failed(self, name: str, error: str) -> None:
        self._watcher.failed(name, error)
        self._errors[name] = error
        self._end(name)

    def until_the_end(self, play: Callable[[], ResultsJson]) -> ResultsJson:
        """Return what ``play`` returns, and tell callbacks that the run ends, as it does or by an error."""
        try:
            results = play()
        except (KeyboardInterrupt, RuntimeFailure):
            with suppress(RuntimeFailure):  # what has stopped the run comes first
                self._callbacks.run_end(self._results())
            raise
        self._callbacks.run_end(results)
        return results

    def _add(self, name: str, record: RoundRecord) -> ArmRun:
        run = self._runs[name]
        run.round = record.round
        run.records.append(record)
        run.ledger.entries += record.traffic
        return run

    def _end(self, name: str) -> None:
        arm = self._arms[name]
        self._callbacks.arm_end(arm, describe_arm(arm, self._runs[name], self._errors))

    def _results(self) -> ResultsJson:
        """Return the results so far; the server may have written none."""
        described = [describe_arm(arm, self._runs[name], self._errors) for name, arm in self._arms.items()]
        first = next(iter(self._arms.values()))
        command = self._folder.command() if self._folder.begun else ""
        return results_json(command, first.task, described, first.evaluate, first.metrics)
