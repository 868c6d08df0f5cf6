"""The Python API: run an experiment from a script or a notebook, and look at what came out."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedistill.config.schema import Experiment
from fedistill.deployment.classifier import Classifier
from fedistill.errors import nearest
from fedistill.experiment import table
from fedistill.experiment.callbacks import Callback, Callbacks
from fedistill.experiment.followed import follow
from fedistill.experiment.results import (
    AnyArmJson,
    AnyResultsJson,
    RoundJson,
    SeedJson,
    Status,
    counted,
    last_views,
    of_seeds,
)
from fedistill.experiment.run_folder import RunFolder, default_folder, read_results
from fedistill.experiment.saved_models import open_saved
from fedistill.experiment.seeds import resume_seeds, run_seeds
from fedistill.experiment.spread import Spread

if TYPE_CHECKING:
    from pandas import DataFrame

    from fedistill.experiment.curves import Axis
    from fedistill.experiment.plot import Backend, Figure


def compare(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> "Run":
    """Run every arm of an experiment and compare them, as ``fedistill compare`` does.

    In a terminal and in a notebook the progress is shown on stderr; elsewhere nothing is printed, and the
    logger ``fedistill`` says how the run goes.

    Args:
        experiment: from `fedistill.load` or `fedistill.parse`, or an `Experiment` built in code.
        out: the folder of the run; by default a new one, ``runs/experiment-TIME``.
        callbacks: called while the run goes on, the first first.
        quiet: show no progress.

    Returns:
        The run. An arm whose training failed has the status ``failed`` and an error; the others are whole.

    Raises:
        ExperimentError: the experiment or the folder is wrong, and nothing was run; or the call is not
            under ``if __name__ == "__main__":`` in a script that needs it.
        RuntimeFailure: the machine or a callback failed; `resume` continues the run.
        TypeError: a callback is no instance of `Callback`.
        KeyboardInterrupt: Ctrl-C, or SIGTERM or SIGHUP where the script has no handler of its own, which
            would have ended it on the spot; finished rounds are in results.json, and `resume` continues.
    """
    told = Callbacks(callbacks)
    folder = default_folder("experiment") if out is None else Path(out)
    follow(folder, quiet, lambda watcher: run_seeds(experiment, folder, _COMMAND, watcher, callbacks=told))
    return Run(folder)


def resume(folder: str | Path, *, callbacks: Sequence[Callback] = (), quiet: bool = False) -> "Run":
    """Resume a run after its last complete round, bit-identically, as ``fedistill resume`` does.

    Args:
        folder: the folder of the run.
        callbacks: called while the run goes on, of the rounds that are still to be run alone.
        quiet: show no progress.

    Raises:
        ExperimentError: there is no run in the folder that could be resumed here, or its data have changed.
        RuntimeFailure: the machine or a callback failed again.
        TypeError: a callback is no instance of `Callback`.
        KeyboardInterrupt: as `compare`.
    """
    told, path = Callbacks(callbacks), Path(folder)
    follow(path, quiet, lambda watcher: resume_seeds(path, watcher, callbacks=told))
    return Run(path)


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
    return SeedSummary(
        arm=arm,
        folder=folder,
        seed=one["seed"],
        status=one["status"],
        error=one["error"],
        rounds=one["rounds"],
        views=last_views(one),
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

    def frame(self) -> "DataFrame":
        """Return what `table` is made of, as a pandas DataFrame: one row per arm and seed.

        Columns: ``arm``, ``seed``, ``method``, ``codec``, ``status``, how many ``rounds``; accuracy (0 to 1)
        by view when it was last evaluated, NaN if the arm does not have the view; ``bytes_up``,
        ``bytes_down``, ``bytes_setup``, ``bytes_public``, ``bytes_total`` (without public data) and
        ``bytes_transport``, summed over clients; ``multiply_adds`` and ``memory`` of clients' work.

        The mean over seeds of a column: ``run.frame().groupby("arm", sort=False)["server@global"].mean()``.
        """
        from fedistill.experiment.frames import arms_frame

        return arms_frame(self.results)

    def rounds(self) -> "DataFrame":
        """Return all rounds as a pandas DataFrame: one row per arm, seed and round.

        Columns: ``arm``, ``seed``, ``round``; ``bytes_up`` and ``bytes_down`` of the round, and
        ``bytes_total`` so far, set-up included and public data not, all summed over clients; accuracy
        (0 to 1) by view, NaN where it was not evaluated; ``seconds`` of the round without evaluation; how
        many ``clients`` took part, and how many of them were ``dropped`` (their reply was lost or refused);
        ``multiply_adds`` and ``memory`` of clients' work.
        """
        from fedistill.experiment.frames import rounds_frame

        return rounds_frame(self.results)

    def bytes_to(self, accuracy: float, view: str = "server@global") -> "DataFrame":
        """Return the bytes until a view first reached an accuracy: one row per arm and seed.

        Columns: ``arm``, ``seed``; ``bytes`` summed over clients, set-up included and public data not, and
        the ``round``, both infinite if the accuracy was never reached, so that medians over seeds are honest;
        ``bytes_public``. Arms without the view are left out; seeds are those that are done, or all that have
        played a round if none is done.

        Args:
            accuracy: 0 to 1.
            view: whose accuracy counts.

        Raises:
            ValueError: the accuracy is out of range, or there is no such view.
        """
        from fedistill.experiment.frames import reach_frame

        return reach_frame(self.results, accuracy, view)

    def plot(
        self,
        x: "Axis" = "bytes",
        view: str = "server@global",
        *,
        backend: "Backend" = "plotly",
        public: bool = False,
    ) -> "Figure":
        """Plot accuracy against what it cost: per arm, the mean over seeds and their range.

        An arm that sends nothing is a dashed level line on an axis of bytes, which is logarithmic.

        Args:
            x: ``bytes`` of all clients, both ways, set-up included; ``round``; or ``time``, the seconds of
                the rounds on the machine that ran them, without evaluation.
            view: whose accuracy is drawn; arms without it are left out.
            backend: ``plotly`` or ``matplotlib`` (extra ``plot``).
            public: count the public set among the bytes, one copy for each client that needs one.

        Returns:
            A `plotly.graph_objects.Figure`, or `matplotlib.axes.Axes`; a notebook shows both.

        Raises:
            ValueError: there is no such axis, view or backend.
            ExperimentError: matplotlib is not installed.
        """
        from fedistill.experiment.plot import plot

        return plot(self.results, x, view, backend, public)

    def _repr_markdown_(self) -> str:
        """Return the table, which a notebook shows for a run."""
        return self.table(markdown=True)

    def __repr__(self) -> str:
        arms = ", ".join(f"{name} ({self[name].status})" for name in self.arms)
        return f"<Run {str(self.path)!r}: {arms}>"


_TEXT_WIDTH = 100
"""Columns of a table as text; the narrow form of it fits most places."""
