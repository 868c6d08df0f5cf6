"""The folder of a run: what was asked, what happened, and where to resume.

::

    experiment.toml     the fully resolved experiment
    events.jsonl        one line for each thing that happened; rounds with every frame
    results.json        the outcome, see `fedistill.experiment.results`
    report.html         the same to look at
    models/ARM/         models after the last complete round, each in a folder of its own
    checkpoint/ARM/     the last two saved rounds of each arm (`fedistill.experiment.checkpoint`)
    session             only of a run on a network: the name under which its nodes keep their states

A run with several seeds has a folder ``seed-N/`` for each of them, which is the complete folder of a run with
that seed; beside these, only the first four files. ``events.jsonl`` says when they were started.

A round is first written to ``events.jsonl``, then its state, then the manifest that names both. A crash
between any two of these loses only the round in which it happened, or, with `checkpoint.every`, those since
the last one that was saved. Nothing is changed before all that the run
needs has been found whole.
"""

import contextlib
import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import ValidationError

from fedistill.config.partitions import Natural
from fedistill.config.schema import Experiment
from fedistill.config.section import RawTable
from fedistill.config.toml import load, to_toml
from fedistill.errors import ExperimentError
from fedistill.experiment import folder_lock
from fedistill.experiment.checkpoint import Checkpoint
from fedistill.experiment.events import EventLog
from fedistill.experiment.results import SCHEMA, SCHEMA_OF_SEEDS, AnyResultsJson, check_results
from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun, Event, RoundRecord
from fedistill.state import write_file

_LONGEST_NAME = 100


class RunFolder:
    """A run's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = EventLog(path / "events.jsonl")
        self._checkpoints: dict[str, Checkpoint] = {}
        self._unsaved: dict[str, list[Event]] = {}

    @classmethod
    def create(cls, path: Path, experiment: Experiment, command: str) -> "RunFolder":
        """Start a folder.

        Raises:
            ExperimentError: it already holds a run, or cannot be written.
        """
        cls.check_free(path)
        folder = cls(path)
        try:
            write_file(path / "experiment.toml", to_toml(experiment).encode())
        except OSError as error:
            raise ExperimentError(
                f"{path}: cannot be written ({error}); choose another folder with --out"
            ) from None
        folder.append({"event": "started", "command": command, "experiment": _plain(experiment)})
        return folder

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise `ExperimentError` if a folder already holds a run."""
        names = ("experiment.toml", "events.jsonl", "checkpoint", "seed-*/experiment.toml")
        if any(any(path.glob(name)) for name in names):
            raise ExperimentError(
                f"{path} already holds a run: choose another folder with --out, or resume that run with:"
                f" {RunFolder(path).resume_command()}"
            )

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an earlier run.

        Raises:
            ExperimentError: there is no run in it.
        """
        if not cls(path).begun:
            raise ExperimentError(
                f"{path} holds no run: there is no experiment.toml in it; name the folder that --out named"
            )
        return cls(path)

    def discard(self) -> None:
        """Take back the run; what else is in the folder stays."""
        for name in ("experiment.toml", "events.jsonl", folder_lock.NAME):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            self.path.rmdir()

    @property
    def session(self) -> Path:
        """The file that only a run on a network has."""
        return self.path / "session"

    def of_seed(self, seed: int) -> "RunFolder":
        """Return the folder of one of several seeds, which may not be there yet."""
        return RunFolder(self.path / f"seed-{seed}")

    @property
    def begun(self) -> bool:
        """Whether there is a run in the folder."""
        return (self.path / "experiment.toml").is_file()

    @property
    def has_results(self) -> bool:
        return (self.path / "results.json").is_file()

    def _any_has(self, name: str) -> bool:
        """Whether this folder, or that of one of its seeds, has a file or folder."""
        return (self.path / name).exists() or any(self.path.glob(f"seed-*/{name}"))

    @property
    def on_network(self) -> bool:
        """Whether clients keep their own states, which are not in this folder."""
        return self._any_has(self.session.name)

    @property
    def on_trial(self) -> bool:
        """Whether it is on a network of this machine, which `fedistill flower` has started."""
        return self._any_has("flower/app")

    def resume_command(self) -> str:
        """Return the command that resumes this run."""
        if self.on_network and not self.on_trial:
            return "flwr run with the same app and the same SuperNodes"
        return shlex.join(["fedistill", *(["flower"] if self.on_network else []), "resume", str(self.path)])

    def experiment(self) -> Experiment:
        """Return what was asked, resolved."""
        found = load(self.path / "experiment.toml")
        if found.task.own_test_share is None and isinstance(found.task.partition, Natural):
            # Version 0.2 and earlier wrote no such key, and no client held out anything.
            return found.model_copy(update={"task": found.task.model_copy(update={"own_test_share": 0.0})})
        return found

    def command(self) -> str:
        return next((e["command"] for e in self.events() if e["event"] == "started"), "")

    def append(self, event: Event) -> None:
        """Add an event."""
        self._log.append(event)

    def events(self) -> list[Event]:
        """Return all events.

        Raises:
            ExperimentError: ``events.jsonl`` is damaged before its last line.
        """
        return self._log.read()

    def began_with(self) -> Experiment | None:
        """Return the experiment as it was when the run began, or when it was last resumed with changes.

        None if the version of fedistill that began it did not keep it, or knew other settings.
        """
        kept = [event["experiment"] for event in self.events() if "experiment" in event]
        try:
            return Experiment.model_validate(kept[-1]) if kept else None
        except ExperimentError:
            return None

    def go_on(
        self, experiment: Experiment, rounds: dict[str, int], event: Literal["resumed", "changed"]
    ) -> None:
        """Resume the run after the last complete round of each arm; later ones are played again.

        Args:
            event: whether the experiment is the one that the run began with, or one that may take its place.
        """
        self._log.drop_rounds_after(rounds)
        if event == "resumed":
            self.append({"event": "resumed"})
            return
        write_file(self.path / "experiment.toml", to_toml(experiment).encode())
        self.append({"event": "changed", "experiment": _plain(experiment)})

    def add_round(self, arm: ReadyArm, run: ArmRun) -> None:
        """Add an arm's last complete round to the events; it is played again unless `save` comes after it."""
        event = {"event": "round", "arm": arm.name, **run.records[-1].to_json()}
        self.append(event)
        self._unsaved.setdefault(arm.name, []).append(event)

    def save(self, arm: ReadyArm, run: ArmRun) -> None:
        """Save an arm as it is after the rounds that were added, if there are any since it was saved last."""
        rounds = self._unsaved.get(arm.name, [])
        if rounds and rounds[-1]["round"] == run.round:  # else a stop came before the last round was added
            del self._unsaved[arm.name]
            self._checkpoint(arm.name).save(arm, run, rounds)

    def restore(self, arm: ReadyArm, warn: Callable[[str], None] = lambda what: None) -> ArmRun:
        """Return an arm as it was after its last complete round, or before round 1 (`Checkpoint.restore`).

        Raises:
            ExperimentError: the saved rounds or ``events.jsonl`` are damaged.
            TrainingError: the arm cannot start.
        """
        return self._checkpoint(arm.name).restore(arm, self._log.rounds(arm.name), warn)

    def last_round(self, arm: str) -> int:
        """Return the last complete round of an arm, 0 before the first."""
        return self._checkpoint(arm).last_round()

    def records(self, arm: str) -> list[RoundRecord]:
        """Return the rounds of an arm so far.

        Raises:
            ExperimentError: a round lacks what this version writes of one, or ``events.jsonl`` is damaged.
        """
        return self._checkpoint(arm).records(self._log.rounds(arm))

    def model_folder(self, arm: str, name: str) -> Path:
        """Return the folder of a saved model: ``server``, ``client-N`` or ``travelling-MODEL``."""
        return self.path / "models" / slug(arm) / slug(name)

    def _checkpoint(self, arm: str) -> Checkpoint:
        if arm not in self._checkpoints:
            self._checkpoints[arm] = Checkpoint(self.path / "checkpoint" / slug(arm), arm)
        return self._checkpoints[arm]


def _plain(experiment: Experiment) -> RawTable:
    return experiment.model_dump(mode="json", exclude_none=True)


def default_folder(name: str) -> Path:
    """Return a folder that is not there yet, for a run that is given none: ``runs/NAME-TIME``."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


def read_results(path: Path) -> AnyResultsJson:
    """Return the content of a run's results.json.

    Raises:
        ExperimentError: there is no run in the folder, or no results that can be read.
    """
    RunFolder.open(path)
    again = f"write it by: fedistill resume {shlex.quote(str(path))}"
    try:
        content = json.loads((path / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path}: results.json cannot be read ({error}); {again}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is int and schema not in (SCHEMA, SCHEMA_OF_SEEDS):
        raise ExperimentError(
            f"{path}: results.json has schema {schema}, which this version does not know ({SCHEMA} and"
            f" {SCHEMA_OF_SEEDS} are known); another version of fedistill may have written it"
        )
    try:
        return check_results(content, SCHEMA_OF_SEEDS if schema == SCHEMA_OF_SEEDS else SCHEMA)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise ExperimentError(f"{path}: results.json is damaged ({place}: {first['msg']}); {again}") from None


def slug(arm: str) -> str:
    """Return a folder's name for an arm; names that differ only in special characters stay distinct."""
    safe = quote(arm, safe="")
    if len(safe) > _LONGEST_NAME:
        safe = f"{safe[:_LONGEST_NAME]}%{hashlib.blake2b(arm.encode(), digest_size=8).hexdigest()}"
    return safe if safe.strip(".") else f"%{safe}"
