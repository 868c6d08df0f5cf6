"""The Python API: run an experiment from a script or a notebook, and look at what came out."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import TracebackType

from rich.console import Console

from fedistill.config.schema import Experiment
from fedistill.deployment.classifier import Classifier
from fedistill.errors import MissingMainGuard, RuntimeFailure, nearest
from fedistill.experiment import table
from fedistill.experiment.progress import Logged, Watcher, is_interactive, shown
from fedistill.experiment.results import (
    AnyArmJson,
    AnyResultsJson,
    RoundJson,
    SeedJson,
    Status,
    counted,
    of_seeds,
)
from fedistill.experiment.run_folder import RunFolder, default_folder, read_results
from fedistill.experiment.saved_models import open_saved
from fedistill.experiment.seeds import resume_seeds, run_seeds
from fedistill.experiment.spread import Spread
from fedistill.stop_signals import stop_requests_of_guest


def compare(experiment: Experiment, out: str | Path | None = None, *, quiet: bool = False) -> "Run":
    """Run every arm of an experiment and compare them, as ``fedistill compare`` does.

    In a terminal and in a notebook the progress is shown on stderr; elsewhere nothing is printed, and the
    logger ``fedistill`` says how the run goes.

    Args:
        experiment: from `fedistill.load` or `fedistill.parse`.
        out: the folder of the run; by default a new one, ``runs/experiment-TIME``.
        quiet: show no progress.

    Returns:
        The run. An arm whose training failed has the status ``failed`` and an error; the others are whole.

    Raises:
        ExperimentError: the experiment or the folder is wrong, and nothing was run; or the call is not
            under ``if __name__ == "__main__":`` in a script that needs it.
        RuntimeFailure: the machine failed; `resume` continues the run.
        KeyboardInterrupt: Ctrl-C, or SIGTERM or SIGHUP where the script has no handler of its own, which
            would have ended it on the spot; finished rounds are in results.json, and `resume` continues.
    """
    folder = default_folder("experiment") if out is None else Path(out)
    return _followed(folder, quiet, lambda watcher: run_seeds(experiment, folder, _COMMAND, watcher))


def resume(folder: str | Path, *, quiet: bool = False) -> "Run":
    """Resume a run after its last complete round, bit-identically, as ``fedistill resume`` does.

    Args:
        folder: the folder of the run.
        quiet: show no progress.

    Raises:
        ExperimentError: there is no run in the folder that could be resumed here, or its data have changed.
        RuntimeFailure: the machine failed again.
        KeyboardInterrupt: as `compare`.
    """
    path = Path(folder)
    return _followed(path, quiet, lambda watcher: resume_seeds(path, watcher))


_COMMAND = "fedistill.compare()"
"""What results.json says of how the run was started."""


@dataclass(frozen=True)
class SeedSummary:
    """What an arm of a run did with one seed.

    Attributes:
        arm: the arm's name; ``folder``: of the run with this seed.
        status: ``done``, ``stopped`` or ``failed``; of the last, ``error`` says why.
        rounds: as in results.json, the first is round 1.
        views: accuracy (0 to 1) by view when it was last evaluated.
        bytes_total: of all frames, set-up included, summed over clients; ``bytes_public``: of the public
            set, one copy for each client that needs one.
    """

    arm: str
    folder: Path
    seed: int
    status: Status
    error: str | None
    rounds: list[RoundJson]
    views: dict[str, float]
    bytes_total: int
    bytes_public: int

    def server_model(self) -> Classifier:
        """Return the server's model after the last complete round, with its preprocessing.

        Raises:
            ExperimentError: the arm has no server model, or no complete round; or the model's own code is
                missing.
        """
        return open_saved(RunFolder(self.folder), self.arm, "server")

    def client_model(self, client: int) -> Classifier:
        """Return the same of a client's own model; clients count from 0.

        Raises:
            ExperimentError: as `server_model`.
        """
        return open_saved(RunFolder(self.folder), self.arm, f"client-{client}")


@dataclass(frozen=True)
class ArmSummary:
    """One arm of a run; without `seeds` in the experiment, what it did with its one seed.

    Attributes:
        status: ``failed`` if it is with any seed, ``done`` if it is with all of them, else ``stopped``.
        error: why the first seed that failed did.
        seeds: what it did with each seed, in order; with several, those that have begun.
        counted: those that the figures below are about: all that are done; or, if none is, all that have
            played a round.
        views: accuracy (0 to 1) by view when it was last evaluated, the mean over seeds.
        views_deviation: their sample standard deviation (n - 1) over seeds; empty if fewer than two count.
        bytes_total: of all frames, set-up included, summed over clients; ``bytes_public``: of the public
            set, one copy for each client that needs one. Means over seeds.
        bytes_total_deviation: the sample standard deviation of ``bytes_total``; None if fewer than two count.
    """

    name: str
    method: str
    codec: str
    status: Status
    error: str | None
    seeds: list[SeedSummary]
    counted: list[SeedSummary]
    views: dict[str, float]
    views_deviation: dict[str, float]
    bytes_total: float
    bytes_total_deviation: float | None
    bytes_public: float

    @property
    def rounds(self) -> list[RoundJson]:
        """As in results.json, the first is round 1.

        Raises:
            AttributeError: there are several seeds, each of which has rounds of its own.
        """
        return self._only_seed("the rounds", "rounds").rounds

    def server_model(self) -> Classifier:
        """Return the server's model, as `SeedSummary.server_model` does.

        Raises:
            AttributeError: there are several seeds, each of which has models of its own.
        """
        return self._only_seed("the model", "server_model()").server_model()

    def client_model(self, client: int) -> Classifier:
        """Return a client's own model, as `SeedSummary.client_model` does.

        Raises:
            AttributeError: as `server_model`.
        """
        return self._only_seed("the model", f"client_model({client})").client_model(client)

    def _only_seed(self, what: str, place: str) -> SeedSummary:
        if len(self.seeds) != 1:
            raise AttributeError(
                f"arm {self.name!r} has {len(self.seeds)} seeds: take {what} of one, `seeds[0].{place}`"
            )
        return self.seeds[0]


def _arm_summary(arm: AnyArmJson, asked: int, path: Path) -> ArmSummary:
    """Return the summary of an arm that was asked to run with so many seeds, in the folder of its run."""
    several, name = "seeds" in arm, arm["name"]
    seeds = [
        _seed_summary(one, name, RunFolder(path).of_seed(one["seed"]).path if several else path)
        for one in of_seeds(arm)
    ]
    numbers = [one["seed"] for one in counted(arm)]
    known = [one for one in seeds if one.seed in numbers]
    views = {
        view: Spread.of([one.views[view] for one in known if view in one.views])
        for view in dict.fromkeys(view for one in known for view in one.views)
    }
    total = Spread.of([one.bytes_total for one in known])
    return ArmSummary(
        name=arm["name"],
        method=arm["method"],
        codec=arm["codec"],
        status=_status([one.status for one in seeds], asked),
        error=next((one.error for one in seeds if one.error is not None), None),
        seeds=seeds,
        counted=known,
        views={view: spread.mean for view, spread in views.items()},
        views_deviation={v: spread.deviation for v, spread in views.items() if spread.deviation is not None},
        bytes_total=total.mean,
        bytes_total_deviation=total.deviation,
        bytes_public=Spread.of([one.bytes_public for one in known]).mean,
    )


def _status(states: Sequence[Status], asked: int) -> Status:
    if "failed" in states:
        return "failed"
    return "done" if states.count("done") == asked else "stopped"


def _seed_summary(one: SeedJson, arm: str, folder: Path) -> SeedSummary:
    last: dict[str, float] = {}
    for entry in one["rounds"]:
        last |= entry["views"]
    return SeedSummary(
        arm=arm,
        folder=folder,
        seed=one["seed"],
        status=one["status"],
        error=one["error"],
        rounds=one["rounds"],
        views=last,
        bytes_total=one["bytes_total"],
        bytes_public=one["bytes_public"],
    )


class Run:
    """A run in its folder, with what its results.json says.

    Attributes:
        path: the folder.
        results: the content of results.json.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the results of a run.

        Raises:
            ExperimentError: there are no results in the folder.
        """
        self.path = Path(path)
        self.results: AnyResultsJson = read_results(self.path)

    @property
    def arms(self) -> list[str]:
        """The names of the arms."""
        return [arm["name"] for arm in self.results["arms"]]

    def __getitem__(self, name: str) -> ArmSummary:
        for arm in self.results["arms"]:
            if arm["name"] == name:
                seeds = len(self.results["seeds"]) if "seeds" in self.results else 1
                return _arm_summary(arm, seeds, self.path)
        raise KeyError(f"no arm {name!r}; the arms are {', '.join(self.arms)}.{nearest(name, self.arms)}")

    def table(self, markdown: bool = False) -> str:
        """Return the table of accuracy beside bytes as text, or as Markdown."""
        if markdown:
            return table.markdown(self.results)
        console = Console(file=StringIO(), width=_TEXT_WIDTH)
        with console.capture() as captured:
            console.print(table.rich_table(self.results, _TEXT_WIDTH))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __repr__(self) -> str:
        arms = ", ".join(f"{name} ({self[name].status})" for name in self.arms)
        return f"<Run {str(self.path)!r}: {arms}>"


_TEXT_WIDTH = 100
"""Columns of a table as text; the narrow form of it fits most places."""


def _followed(folder: Path, quiet: bool, play: Callable[[Watcher], AnyResultsJson]) -> Run:
    """Run something, shown to whoever looks on."""
    with _watched(quiet) as watcher:
        try:
            with stop_requests_of_guest():
                play(watcher)
        except MissingMainGuard:
            _hide_traceback_of_missing_guard()
            raise
        except (RuntimeFailure, KeyboardInterrupt, OSError) as error:
            if (folder / "experiment.toml").exists():
                error.add_note(f"Finished rounds are kept; resume with: fedistill.resume({str(folder)!r})")
            raise
    return Run(folder)


def _hide_traceback_of_missing_guard() -> None:
    """Let the interpreter end with the message alone: what it says is all that the script's author needs."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MissingMainGuard):
            print(f"fedistill: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


@contextlib.contextmanager
def _watched(quiet: bool) -> Iterator[Watcher]:
    console = Console(stderr=True)
    if quiet or not is_interactive(console):
        yield Logged()
        return
    with shown(console) as watcher:
        yield watcher
