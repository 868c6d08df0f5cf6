"""The folder of a run: what was asked, what happened, and where to resume.

::

    experiment.toml     the fully resolved experiment
    events.jsonl        one line for each thing that happened; rounds with every frame
    results.json        the outcome, see `fedistill.experiment.results`
    report.html         the same to look at
    models/ARM/         models after the last complete round, each in a folder of its own
    checkpoint/ARM/     the last complete round of each arm
    session             only of a run on a network: the name under which its nodes keep their states

A run with several seeds has a folder ``seed-N/`` for each of them, which is the complete folder of a run with
that seed; beside these, only the first four files. ``events.jsonl`` says when they were started.

A round is first written to ``events.jsonl``, then its state, then the manifest that names both. A crash
between any two of these loses only the round in which it happened.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

from fedistill.communication.protocol.shared_state import dump_states, load_states
from fedistill.config.schema import Experiment
from fedistill.config.toml import load, to_toml
from fedistill.errors import ExperimentError
from fedistill.experiment.results import SCHEMA, SCHEMA_OF_SEEDS, AnyResultsJson
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.history import ArmRun, Event, RoundRecord
from fedistill.federation.ledger import Entry
from fedistill.methods.base import AnyState
from fedistill.state import decode_state, encode_state, from_plain, to_plain, write_file
from fedistill.training.model_state import ModelState

_MANIFEST = "manifest.json"
_LONGEST_NAME = 100


class _Manifest(TypedDict):
    """The checkpoint of an arm: its last complete round, its files by client, and what they do not hold."""

    round: int
    server: str
    clients: dict[str, str]
    correct: dict[str, list[int]]
    setup: list[dict[str, Any]]


class RunFolder:
    """A run's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        folder.append({"event": "started", "command": command})
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
        for name in ("experiment.toml", "events.jsonl"):
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
        return load(self.path / "experiment.toml")

    def command(self) -> str:
        return next((e["command"] for e in self.events() if e["event"] == "started"), "")

    def append(self, event: Event) -> None:
        """Add a line to ``events.jsonl``."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a round that the manifest names must not be lost

    def events(self) -> list[Event]:
        """Return all events; a last line that a crash cut short is left out."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        found: list[Event] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def drop_rounds_after(self, rounds: dict[str, int]) -> None:
        """Drop the events of rounds whose state was not saved, which are played again."""
        remaining = [
            event
            for event in self.events()
            if event["event"] != "round" or event["round"] <= rounds.get(event["arm"], 0)
        ]
        write_file(self.path / "events.jsonl", "".join(json.dumps(e) + "\n" for e in remaining).encode())

    def save(self, arm: ReadyArm, run: ArmRun) -> None:
        """Save an arm after a complete round; only clients that have worked since are written again."""
        folder = self._checkpoint(arm.name)
        old = self._manifest(arm.name)
        if run.records:
            self.append({"event": "round", "arm": arm.name, **run.records[-1].to_json()})
        files = dict(old["clients"]) if old else {}
        worked = run.records[-1].clients if run.records else []
        for client in worked:
            files.pop(str(client), None)
            if client in run.clients:
                name = f"client-{client}-{run.round}.safetensors"
                write_file(folder / name, run.clients[client])
                files[str(client)] = name
        server = f"server-{run.round}.safetensors"
        mean = {} if run.mean is None else {"mean": to_plain(run.mean)}
        links = dump_states(run.shared_states)
        write_file(folder / server, encode_state({"method": to_plain(run.server), "links": links, **mean}))
        manifest: _Manifest = {
            "round": run.round,
            "server": server,
            "clients": files,
            "correct": {str(client): right for client, right in run.correct.items()},
            "setup": [asdict(entry) for entry in run.ledger.of_round(0)],
        }
        write_file(folder / _MANIFEST, json.dumps(manifest).encode())
        named = {server, *files.values()}
        for path in folder.glob("*.safetensors"):
            if path.name not in named:
                path.unlink()

    def restore(self, arm: ReadyArm) -> ArmRun:
        """Return an arm as it was after its last complete round, or before round 1.

        Raises:
            ExperimentError: files of the arm are missing or damaged.
            TrainingError: the arm cannot start.
        """
        manifest = self._manifest(arm.name)
        if manifest is None:
            return start_run(arm)
        folder = self._checkpoint(arm.name)
        try:
            saved = decode_state((folder / manifest["server"]).read_bytes())
            shared_states = load_states(saved["links"])
            server: AnyState = from_plain(arm.method.ServerState, saved["method"])
            mean = from_plain(ModelState, saved["mean"]) if "mean" in saved else None
            clients = {
                int(client): (folder / name).read_bytes() for client, name in manifest["clients"].items()
            }
            for state in clients.values():
                decode_state(state)
        except (OSError, ValueError) as error:
            raise self._damaged(arm.name, str(error)) from None
        run = ArmRun(
            round=manifest["round"],
            server=server,
            clients=clients,
            ledger=start_run(arm).ledger,
            shared_states=shared_states,
            correct={int(client): right for client, right in manifest["correct"].items()},
            mean=mean,
        )
        run.ledger.entries = [Entry(**entry) for entry in manifest["setup"]]
        run.records = [record for record in self.records(arm.name) if record.round <= manifest["round"]]
        if [record.round for record in run.records] != list(range(1, run.round + 1)):
            raise self._damaged(arm.name, f"events.jsonl does not have all rounds up to {run.round}")
        for record in run.records:
            run.ledger.entries += record.traffic
        return run

    def last_round(self, arm: str) -> int:
        """Return the last complete round of an arm, 0 before the first."""
        manifest = self._manifest(arm)
        return 0 if manifest is None else int(manifest["round"])

    def records(self, arm: str) -> list[RoundRecord]:
        """Return the rounds of an arm so far.

        Raises:
            ExperimentError: a round lacks what this version writes of one.
        """
        rounds = [event for event in self.events() if event["event"] == "round" and event["arm"] == arm]
        try:
            return [RoundRecord.from_json(event) for event in rounds]
        except KeyError as error:
            what = f"a round in events.jsonl has no {error}; another version of fedistill may have written it"
            raise self._damaged(arm, what) from None

    def model_folder(self, arm: str, name: str) -> Path:
        """Return the folder of a saved model: ``server``, ``client-N`` or ``travelling-MODEL``."""
        return self.path / "models" / _slug(arm) / _slug(name)

    def _checkpoint(self, arm: str) -> Path:
        return self.path / "checkpoint" / _slug(arm)

    def _manifest(self, arm: str) -> _Manifest | None:
        path = self._checkpoint(arm) / _MANIFEST
        try:
            manifest: _Manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._damaged(arm, f"{_MANIFEST}: {error}") from None
        return manifest

    def _damaged(self, arm: str, what: str) -> ExperimentError:
        return ExperimentError(
            f"arm {arm!r}: its checkpoint is damaged ({what}); delete the folder {self._checkpoint(arm)} to"
            " play this arm again from round 1"
        )


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
    try:
        content: AnyResultsJson = json.loads((path / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{path}: results.json cannot be read ({error}); write it by: fedistill resume"
            f" {shlex.quote(str(path))}"
        ) from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in (SCHEMA, SCHEMA_OF_SEEDS):
        raise ExperimentError(
            f"{path}: results.json has schema {schema!r}, which this version does not know ({SCHEMA} and"
            f" {SCHEMA_OF_SEEDS} are known); another version of fedistill may have written it"
        )
    return content


def _slug(arm: str) -> str:
    """Return a folder's name for an arm; names that differ only in special characters stay distinct."""
    safe = quote(arm, safe="")
    if len(safe) > _LONGEST_NAME:
        safe = f"{safe[:_LONGEST_NAME]}%{hashlib.blake2b(arm.encode(), digest_size=8).hexdigest()}"
    return safe if safe.strip(".") else f"%{safe}"
