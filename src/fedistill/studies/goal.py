"""What makes a trial better than another, and the best trial of an arm."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedistill.config.units import format_bytes
from fedistill.experiment.measure import ACCURACY, Measure
from fedistill.experiment.reach import reached
from fedistill.experiment.results import ArmJson
from fedistill.experiment.table import last_and_best
from fedistill.studies.tuning_folder import Trial


@dataclass(frozen=True)
class Goal:
    """What makes a trial better than another.

    Without a target: the better accuracy after the last round; if equal, the fewer bytes. With one: the fewer
    bytes until the accuracy first reaches it, in both directions, set-up included and public data not; trials
    that do not reach it come after these, the more accurate first. Failed trials come last; of equal ones,
    the earlier is better. Another metric may take the place of accuracy.

    Attributes:
        target: a value of the metric; accuracy is 0 to 1.
        view: the view that counts, if the arm has it; by default, and otherwise, ``server@global``, or
            ``client@global`` if the arm has no model at the server.
        measure: the metric.
    """

    target: float | None = None
    view: str | None = None
    measure: Measure = ACCURACY

    def view_of(self, result: ArmJson) -> str | None:
        """Return the view that counts, or None if an arm failed before it was evaluated."""
        wanted = [self.view] if self.view else []
        for view in (*wanted, "server@global", "client@global"):
            if any(self.measure.value(entry, view) is not None for entry in result["rounds"]):
                return view
        return None

    def value(self, trial: Trial) -> float | None:
        """Return the metric after the last round, or None if the trial failed."""
        view = self.view_of(trial["result"])
        if view is None or trial["result"]["status"] != "done":
            return None
        found = last_and_best(trial["result"], view, self.measure)
        return None if found is None else found[0]

    def bytes_to_target(self, trial: Trial) -> int | None:
        """Return the bytes until the target was first reached; None if it was not, or the trial failed."""
        view = self.view_of(trial["result"])
        if self.target is None or view is None or trial["result"]["status"] != "done":
            return None
        found = reached(trial["result"], view, self.target, self.measure)
        return None if found is None else found[0]

    def decided(self, result: ArmJson, best: Trial | None) -> bool:
        """Return whether further rounds of a trial cannot change what is best.

        So it is when a trial has reached the target, or has sent more than the best one needed for that.

        Args:
            result: of the rounds so far.
            best: the best of the arm's earlier trials.
        """
        view = self.view_of(result)
        if self.target is None or view is None:
            return False
        least = None if best is None else self.bytes_to_target(best)
        spent = least is not None and result["bytes_total"] > least
        return spent or reached(result, view, self.target, self.measure) is not None

    def rank(self, trial: Trial) -> tuple[float, float, float]:
        """Return what is smaller for the better trial."""
        value, sent = self.value(trial), self.bytes_to_target(trial)
        if value is None:
            return 2, 0, 0
        if sent is not None:
            return 0, sent, self.measure.cost(value)
        return 1, self.measure.cost(value), trial["result"]["bytes_total"]

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the best trial; None if all failed, or there are none."""
        found = min(trials, key=self.rank, default=None)
        return None if found is None or self.value(found) is None else found

    def describe(self, trial: Trial) -> str:
        """Return what a trial reached, such as ``server@global 81.4%, 235 kB to 80.0%``."""
        value, sent = self.value(trial), self.bytes_to_target(trial)
        if value is None:
            return "failed"
        total = format_bytes(trial["result"]["bytes_total"])
        if self.target is not None:
            target = self.measure.write(self.target)
            total = f"{target} not reached" if sent is None else f"{format_bytes(sent)} to {target}"
        return f"{self.view_of(trial['result'])} {self.measure.write(value)}, {total}"

    def __str__(self) -> str:
        usual = "server@global, else client@global"
        views = usual if self.view is None else f"{self.view}, else {usual}"
        if self.target is None:
            best = "highest" if self.measure.better == "higher" else "lowest"
            return f"the {best} {self.measure.name} ({views}) after the last round"
        name = "an accuracy" if self.measure == ACCURACY else self.measure.name
        return f"the fewest bytes to {name} ({views}) of {self.measure.write(self.target)}"


@dataclass(frozen=True)
class TunedArm:
    """An arm with its finished trials, of which the first has its own settings.

    Attributes:
        best: None if all trials failed, or if there are none.
    """

    name: str
    trials: list[Trial]
    best: Trial | None
