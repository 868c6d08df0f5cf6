"""What all trackers share: one run of the tracker for each arm and seed, with its settings and its rounds."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from fedistill.config.section import Raw
from fedistill.errors import ExperimentError
from fedistill.experiment.callbacks import Callback, CurrentArm, RoundSoFar, RunStart
from fedistill.experiment.results import AnyResultsJson, ArmJson, Status
from fedistill.experiment.run_folder import slug
from fedistill.state import write_file

Setting = bool | int | float | str


@dataclass(frozen=True)
class TrackedArm:
    """What a run of a tracker is about.

    Attributes:
        title: the arm's name, and the seed where the experiment has several.
        place: the same as folders, without special characters.
        folder: of the fedistill run, whose arms belong together.
        settings: of the experiment and, below ``arm.``, of this arm, by dotted key.
    """

    title: str
    place: Path
    folder: Path
    settings: dict[str, Setting]


class Tracker(Callback, ABC):
    """Logs accuracies by view, bytes and seconds of each round to a run of its own for each arm and seed."""

    def __init__(self) -> None:
        self._start: RunStart | None = None
        self._current: CurrentArm | None = None

    def connect(self) -> None:
        """Find out whether values can be logged, before the first round is run."""

    @abstractmethod
    def begin(self, arm: TrackedArm) -> None:
        """Begin a run of the tracker, or continue the one that a stopped run has begun for this arm."""

    @abstractmethod
    def log(self, values: Mapping[str, float], round: int) -> None:
        """Log values of a round to the run that was begun last."""

    @abstractmethod
    def end(self, status: Status) -> None:
        """End that run."""

    @final
    def on_run_start(self, run: RunStart) -> None:
        self._start = run
        self.connect()

    @final
    def on_round_end(self, arm: CurrentArm, record: RoundSoFar) -> None:
        self._begin(arm)
        self.log(_values(record), record["round"])

    @final
    def on_arm_end(self, arm: CurrentArm, outcome: ArmJson) -> None:
        self._begin(arm)  # an arm that has failed in its first round has not begun
        self._end(outcome["status"])

    @final
    def on_run_end(self, results: AnyResultsJson) -> None:
        if self._current is not None:
            self._end("stopped")

    def _begin(self, arm: CurrentArm) -> None:
        if self._current is None:
            assert self._start is not None
            self.begin(_tracked(self._start, arm))
            self._current = arm

    def _end(self, status: Status) -> None:
        self._current = None
        self.end(status)


class KeptIds:
    """The names under which a tracker knows its runs, in ``tracking.json`` of the run's folder."""

    def __init__(self, tracker: Literal["mlflow", "wandb"]) -> None:
        self._tracker = tracker

    def of(self, arm: TrackedArm) -> str | None:
        """Return that of an arm, or None if it has not been begun."""
        return self._read(arm.folder).get(self._tracker, {}).get(arm.title)

    def keep(self, arm: TrackedArm, id: str) -> None:
        """Keep that of an arm."""
        kept = self._read(arm.folder)
        kept.setdefault(self._tracker, {})[arm.title] = id
        write_file(arm.folder / "tracking.json", json.dumps(kept, indent=1).encode())

    def _read(self, folder: Path) -> dict[str, dict[str, str]]:
        path = folder / "tracking.json"
        try:
            kept: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ExperimentError(
                f"{path}: cannot be read ({error}); delete it, and arms are tracked as new runs"
            ) from None
        return kept


def missing(package: str, error: ImportError) -> ExperimentError:
    """Return the error that says how to install a tracker."""
    return ExperimentError(f"{package} is not installed ({error}): pip install 'fedistill[track]'")


def _values(record: RoundSoFar) -> dict[str, float]:
    return {
        **record["views"],
        "bytes_up": record["bytes_up"],
        "bytes_down": record["bytes_down"],
        "bytes_total": record["bytes_total"],
        "seconds": record["seconds"],
    }


def _tracked(start: RunStart, arm: CurrentArm) -> TrackedArm:
    title, place = arm.name, Path(slug(arm.name))
    if start.experiment.seeds is not None:
        title, place = f"{title}, seed {arm.seed}", place / f"seed-{arm.seed}"
    # The arm has its own models and training, written out.
    experiment = start.experiment.model_dump(
        mode="json", exclude_none=True, exclude={"arms", "models", "seeds", "train"}
    )
    own = arm.settings.model_dump(mode="json", exclude_none=True)
    settings = _flat({**experiment, "seed": arm.seed, "arm": own})
    return TrackedArm(title, place, start.path, settings)


def _flat(table: Mapping[str, Raw], above: str = "") -> dict[str, Setting]:
    """Return scalars by dotted key; lists are written as JSON."""
    found: dict[str, Setting] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{key}.")
        else:
            found[above + key] = value if isinstance(value, Setting) else json.dumps(value)
    return found
