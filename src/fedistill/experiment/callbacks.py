"""Callbacks: a user's own code, called while a run goes on, in the process that leads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedistill.config.schema import Arm, Experiment
from fedistill.errors import RuntimeFailure
from fedistill.experiment.results import AnyResultsJson, ArmJson, RoundJson
from fedistill.experiment.summary import round_json
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun, RoundRecord


@dataclass(frozen=True)
class RunStart:
    """A run that starts or is resumed.

    Attributes:
        path: its folder.
        experiment: with what it leaves open written out, as in the folder's ``experiment.toml``.
        resumed: whether it has been run before, so that some of its rounds may have been told.
    """

    path: Path
    experiment: Experiment
    resumed: bool


@dataclass(frozen=True)
class CurrentArm:
    """The arm that is being run; without `seeds` in the experiment, ``seed`` is the arm's only one.

    Attributes:
        rounds: how many it is asked for.
        settings: its table of the experiment, written out.
    """

    name: str
    seed: int
    rounds: int
    settings: Arm


@final
class RoundSoFar(RoundJson):
    """A round as in results.json, and ``bytes_total``: those so far, set-up included, public data not."""

    bytes_total: int


class Callback:
    """What is called while a run goes on; each of these does nothing unless a subclass replaces it.

    Arms are run one after the other, seed by seed. A round is told once it is saved; a resumed run tells only
    the rounds that it adds. An exception ends the run with `RuntimeFailure`: finished rounds are kept, and
    `fedistill.resume` continues after the round that was told last.
    """

    def on_run_start(self, run: RunStart) -> None:
        """Called before round 1 of the first arm, or where a run is resumed."""

    def on_round_end(self, arm: CurrentArm, record: RoundSoFar) -> None:
        """Called after each round of each arm, with each seed."""

    def on_arm_end(self, arm: CurrentArm, outcome: ArmJson) -> None:
        """Called when an arm is done or has failed with a seed; not again if it was done before a resume.

        Args:
            outcome: as in results.json of a run with one seed; ``status`` is ``done`` or ``failed``.
        """

    def on_run_end(self, results: AnyResultsJson) -> None:
        """Called with the content of results.json when all arms are done or have failed, or the run stops."""


class Callbacks:
    """Calls some callbacks, the first first."""

    def __init__(self, callbacks: Sequence[Callback] = (), *, whole_run: bool = True) -> None:
        """Take callbacks.

        Args:
            whole_run: tell where the run starts and ends, not only its rounds and arms.

        Raises:
            TypeError: one of them is no `Callback`.
        """
        for one in callbacks:
            if not isinstance(one, Callback):
                call = f": write {one.__name__}()" if isinstance(one, type) else ""
                raise TypeError(f"callbacks: {one!r} is not an instance of fedistill.Callback{call}")
        self._callbacks, self._whole_run = tuple(callbacks), whole_run

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._callbacks)

    def of_seed(self) -> "Callbacks":
        """Return the same for a run that is one seed of an entire run."""
        return Callbacks(self._callbacks, whole_run=False)

    def run_start(self, path: Path, experiment: Experiment, *, resumed: bool) -> None:
        """Tell that the run starts.

        Raises:
            RuntimeFailure: a callback has failed, here and below.
        """
        if self._whole_run:
            start = RunStart(path, experiment, resumed)
            self._each("on_run_start", "", lambda one: one.on_run_start(start))

    def round_end(self, arm: ReadyArm, run: ArmRun, record: RoundRecord) -> None:
        """Tell a round, the last one of the arm so far."""
        told: RoundSoFar = {**round_json(run, record), "bytes_total": run.ledger.total}
        current = _current(arm)
        place = f" after round {run.round} of arm {arm.name!r}"
        self._each("on_round_end", place, lambda one: one.on_round_end(current, told))

    def arm_end(self, arm: ReadyArm, outcome: ArmJson) -> None:
        """Tell that an arm is done or has failed."""
        current = _current(arm)
        self._each("on_arm_end", f" after arm {arm.name!r}", lambda one: one.on_arm_end(current, outcome))

    def run_end(self, results: AnyResultsJson) -> None:
        """Tell that the run ends; all are told, so that each can close what it has opened."""
        if self._whole_run:
            self._each("on_run_end", "", lambda one: one.on_run_end(results))

    def _each(self, what: str, place: str, call: Callable[[Callback], None]) -> None:
        """Call all of them, and then raise the error of the first that has failed."""
        failure: RuntimeFailure | None = None
        for one in self._callbacks:
            try:
                call(one)
            except Exception as error:
                if failure is None:
                    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                    failure = RuntimeFailure(f"callback {type(one).__name__}.{what} failed{place}: {said}")
                    failure.__cause__ = error
        if failure is not None:
            raise failure


NO_CALLBACKS = Callbacks()


def _current(arm: ReadyArm) -> CurrentArm:
    return CurrentArm(arm.name, arm.seed, arm.rounds, arm.config)
