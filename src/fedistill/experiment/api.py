"""The Python API: run an experiment from a script or a notebook, and look at what came out."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedistill.config.schema import Experiment
from fedistill.errors import nearest
from fedistill.experiment.arm_summary import ArmSummary, arm_summary
from fedistill.experiment.callbacks import Callback, Callbacks
from fedistill.experiment.followed import follow
from fedistill.experiment.results import AnyResultsJson
from fedistill.experiment.run_folder import default_folder, read_results
from fedistill.experiment.seeds import resume_seeds, run_seeds
from fedistill.experiment.table import markdown
from fedistill.experiment.terminal_table import rich_table

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
                return arm_summary(arm, seeds, self.path)
        raise KeyError(f"no arm {name!r}; the arms are {', '.join(self.arms)}.{nearest(name, self.arms)}")

    def table(self) -> "DataFrame":
        """Return accuracy beside bytes as a pandas DataFrame: one row per arm and seed.

        Columns: ``arm``, ``seed``, ``method``, ``codec``, ``status``, how many ``rounds``; accuracy (0 to 1)
        by view when it was last evaluated, NaN if the arm does not have the view; ``bytes_up``,
        ``bytes_down``, ``bytes_setup``, ``bytes_public``, ``bytes_total`` (without public data) and
        ``bytes_transport``, summed over clients; ``multiply_adds`` and ``memory`` of clients' work.

        The mean over seeds of a column: ``run.table().groupby("arm", sort=False)["server@global"].mean()``.
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

    def markdown(self) -> str:
        """Return the table of accuracy beside bytes as Markdown: one row per arm, means over seeds."""
        return markdown(self.results)

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows for a run: its table."""
        return self.markdown()

    def __str__(self) -> str:
        """Return the same table as text, as the command line prints it; so ``print(run)``."""
        console = Console(file=StringIO(), width=_TEXT_WIDTH, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(rich_table(self.results, _TEXT_WIDTH))
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __repr__(self) -> str:
        arms = ", ".join(f"{name} ({self[name].status})" for name in self.arms)
        return f"<Run {str(self.path)!r}: {arms}>"


_TEXT_WIDTH = 100
"""Columns of a table as text; the narrow form of it fits most places."""
