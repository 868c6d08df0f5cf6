"""The folder of a tuning: what was asked, what was tried, and the tuned experiment.

::

    tuning.json     what was asked: experiment, data, rounds, seed, search space, versions, where trials stop
    trials.jsonl    what was tried: one line for each finished trial (`Trial`)
    tuned.toml      the experiment, each arm with its best settings

A trial is written when it has ended, so that a stop or a crash loses only the one that was running.
"""

import json
import os
from pathlib import Path
from typing import TypedDict

from fedistill.config.section import Raw, RawTable
from fedistill.errors import ExperimentError
from fedistill.experiment.results import ArmJson
from fedistill.experiment.run_folder import RunFolder
from fedistill.state import write_file

_STOPS_AT = "trials stop at"


class Trial(TypedDict):
    """One trial of an arm.

    ``settings`` are those that differ from the arm's own, by place; ``result`` is as in results.json, with
    views on the validation samples.
    """

    arm: str
    trial: int
    settings: dict[str, Raw]
    seconds: float
    result: ArmJson


class TuningFolder:
    """A tuning's folder on disk.

    Attributes:
        stops_at: where the trials of this tuning end early; None if all have all their rounds.
    """

    def __init__(self, path: Path, asked: RawTable, stops_at: RawTable | None) -> None:
        """Start or continue a tuning.

        Args:
            asked: all that results depend on, as JSON has it; must be the same when a tuning is continued.
            stops_at: where trials end early, if they do; must be the same for a tuning whose trials did.

        Raises:
            ExperimentError: the folder holds a run or another tuning, is damaged, or cannot be written.
        """
        RunFolder.check_free(path)
        self.path = path
        self.stops_at = stops_at
        self._trials: list[Trial] = []
        try:
            if (path / "tuning.json").exists():
                self._continue(json.loads((path / "tuning.json").read_text(encoding="utf-8")), asked)
            else:
                whole = json.dumps({**asked, _STOPS_AT: stops_at}, indent=1)
                write_file(path / "tuning.json", whole.encode())
        except (OSError, ValueError) as error:
            raise ExperimentError(
                f"{path}: cannot be used ({error}); choose another folder with --out"
            ) from None

    @property
    def tuned(self) -> Path:
        return self.path / "tuned.toml"

    def trials(self, arm: str) -> list[Trial]:
        """Return the finished trials of an arm, the first one first."""
        return [trial for trial in self._trials if trial["arm"] == arm]

    def append(self, trial: Trial) -> None:
        """Keep a finished trial."""
        with (self.path / "trials.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._trials.append(trial)

    def _continue(self, before: RawTable, asked: RawTable) -> None:
        asked = json.loads(json.dumps(asked))  # numbers and lists as they come from a file
        stopped_at = before.get(_STOPS_AT)
        if stopped_at is not None:  # a trial that ended early says nothing about another target
            asked[_STOPS_AT] = self.stops_at
        self.stops_at = stopped_at
        changed = [key for key in asked if before.get(key) != asked[key]]
        if changed:
            raise ExperimentError(
                f"{self.path} holds another tuning, which differs in {', '.join(changed)}: choose another"
                " folder with --out"
            )
        if not (self.path / "trials.jsonl").exists():
            return
        text = (self.path / "trials.jsonl").read_text(encoding="utf-8")
        lines = text.splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                self._trials.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise ValueError(f"line {number} of trials.jsonl is damaged") from None
        if len(self._trials) < len(lines) or not text.endswith("\n"):
            # A crash cut the last line short; the next one must not continue it.
            whole = "".join(json.dumps(trial) + "\n" for trial in self._trials)
            write_file(self.path / "trials.jsonl", whole.encode())
