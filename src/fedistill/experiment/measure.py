"""The number that table, targets and tuning look at: accuracy, or another metric of the run."""

from dataclasses import dataclass

from fedistill.config.units import read_accuracy
from fedistill.errors import ExperimentError, nearest
from fedistill.experiment.results import AnyResultsJson, RoundJson
from fedistill.federation import metrics
from fedistill.federation.metrics import Better, Metric

_SHARES = (metrics.ACCURACY, "balanced-accuracy")
"""What is written in per cent: shares of samples; all others are plain numbers."""


@dataclass(frozen=True)
class Measure:
    """A metric by name, and which of two values is the better one.

    Attributes:
        most: no value is above it.
    """

    name: str = metrics.ACCURACY
    better: Better = "higher"
    most: float = 1.0

    @classmethod
    def of(cls, metric: Metric) -> "Measure":
        return cls(metric.name, metric.better, metric.most)

    @classmethod
    def find(cls, results: AnyResultsJson, name: str) -> "Measure":
        """Return a metric that a run has.

        Raises:
            ExperimentError: the run has no such metric.
        """
        if name == metrics.ACCURACY:
            return cls()
        known = results.get("metrics", [])
        for metric in known:
            if metric["name"] == name:
                return cls(name, metric["better"], metric["most"] or float("inf"))
        names = [metrics.ACCURACY, *(metric["name"] for metric in known)]
        raise ExperimentError(
            f"--metric {name}: the run has {', '.join(names)}; others are computed if evaluate.metrics lists"
            f" them before it is run.{nearest(name, names)}"
        )

    def value(self, entry: RoundJson, view: str) -> float | None:
        """Return the value of a view in a round, or None if it was not evaluated or is undefined."""
        if self.name == metrics.ACCURACY:
            return entry["views"].get(view)
        return entry.get("metrics", {}).get(self.name, {}).get(view)

    def cost(self, value: float) -> float:
        """Return what is smaller for the better value."""
        return -value if self.better == "higher" else value

    def reaches(self, value: float | None, target: float) -> bool:
        """Whether a value is as good as a target."""
        return value is not None and self.cost(value) <= self.cost(target)

    def write(self, value: float) -> str:
        return f"{value:.1%}" if self.name in _SHARES else f"{value:.3f}"

    def read_target(self, option: str, text: str) -> float:
        """Return a target as it is written: of metrics that are shares also in percent.

        Raises:
            ExperimentError: it is none; ``option`` is named.
        """
        try:
            return read_accuracy(text) if self.most == 1 else float(text.replace(",", "."))
        except ExperimentError as error:
            raise ExperimentError(f"{option} {error}") from None
        except ValueError:
            raise ExperimentError(f"{option} {text}: {self.name} is a number, such as 0.5") from None


ACCURACY = Measure()
