"""The folder of a run: what was asked, what happened, and where to go on.

::

    experiment.toml     the fully resolved experiment
    events.jsonl        one line for each thing that happened; rounds with every frame
    results.json        the outcome, see `fedistill.experiment.results`
    report.html         the same to look at
    models/ARM/         final models, as safetensors with PyTorch's names
    checkpoint/ARM/     the last whole round of each arm
    session             of a run on a network alone: the name under which its nodes keep their states

A round is first written to ``events.jsonl``, then its state, then the manifest that names both. A crash
between any two of these loses nothing but the round in which it fell.
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
from typing import Any
from urllib.parse import quote

from fedistill.communication.protocol.shared_state import dump_states, load_states
from fedistill.config.schema import Experiment
from fedistill.config.toml import load, to_toml
from fedistill.errors import ExperimentError
from fedistill.experiment.results import ResultsJson
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.history import ArmRun, RoundRecord
from fedistill.federation.ledger import Entry
from fedistill.state import decode_state, encode_state, from_plain, to_plain, write_file

_MANIFEST = "manifest.json"
_LONGEST_NAME = 100


class RunFolder:
    """A run's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, experiment: Experiment, command: str) -> "RunFolder":
        """Start a folder.

        Raises:
            ExperimentError: it holds a run already, or cannot be written.
        """
        cls.check_free(path)
        folder = cls(path)
        try:
            write_file(path / "experiment.toml", to_toml(experiment).encode())
        except OSError as error:
            raise ExperimentError(f"{path}: cannot be written ({error}); choose a folder by --out") from None
        folder.append({"event": "started", "command": command})
        return folder

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise `ExperimentError` where a folder holds a run already."""
        if any((path / name).exists() for name in ("experiment.toml", "events.jsonl", "checkpoint")):
            raise ExperimentError(
                f"{path} holds a run already: choose another folder by --out, or go on with that run by:"
                f" {RunFolder(path).again()}"
            )

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of an earlier run.

        Raises:
            ExperimentError: there is no run in it.
        """
        if not (path / "experiment.toml").is_file():
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
        """The file that a run on a network has."""
        return self.path / "session"

    @property
    def on_network(self) -> bool:
        """Whether clients keep their own states, out of reach of this folder."""
        return self.session.exists()

    def again(self) -> str:
        """The command that goes on with this run."""
        if self.on_network and not (self.path / "flower" / "app").is_dir():
            return "flwr run with the same app and the same SuperNodes"
        return shlex.join(["fedistill", *(["flower"] if self.on_network else []), "resume", str(self.path)])

    def experiment(self) -> Experiment:
        return load(self.path / "experiment.toml")

    def command(self) -> str:
        return next((e["command"] for e in self.events() if e["event"] == "started"), "")

    def append(self, event: dict[str, Any]) -> None:
        """Add a line to ``events.jsonl``."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a round must not be lost that the manifest speaks of

    def events(self) -> list[dict[str, Any]]:
        """All events; a last line that a crash cut short is left out."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def forget_after(self, rounds: dict[str, int]) -> None:
        """Drop the events of rounds that are played again because their state was not saved."""
        kept = [
            event
            for event in self.events()
            if event["event"] != "round" or event["round"] <= rounds.get(event["arm"], 0)
        ]
        write_file(self.path / "events.jsonl", "".join(json.dumps(e) + "\n" for e in kept).encode())

    def save(self, arm: ReadyArm, run: ArmRun) -> None:
        """Save an arm after a whole round: only the clients that worked are written anew."""
        folder = self._checkpoint(arm.name)
        old = self._manifest(arm.name)
        if run.records:
            self.append({"event": "round", "arm": arm.name, **run.records[-1].plain()})
        files = dict(old["clients"]) if old else {}
        worked = run.records[-1].clients if run.records else []
        for client in worked:
            files.pop(str(client), None)
            if client in run.clients:
                name = f"client-{client}-{run.round}.safetensors"
                write_file(folder / name, run.clients[client])
                files[str(client)] = name
        server = f"server-{run.round}.safetensors"
        write_file(
            folder / server,
            encode_state({"method": to_plain(run.server), "links": dump_states(run.shared_states)}),
        )
        manifest = {
            "round": run.round,
            "server": server,
            "clients": files,
            "correct": {str(client): right for client, right in run.correct.items()},
            "setup": [asdict(entry) for entry in run.ledger.of_round(0)],
        }
        write_file(folder / _MANIFEST, json.dumps(manifest).encode())
        kept = {server, *files.values()}
        for path in folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def restore(self, arm: ReadyArm) -> ArmRun:
        """Return an arm as it was after its last whole round, or before round 1.

        Raises:
            ExperimentError: files of the arm are missing or damaged.
        """
        manifest = self._manifest(arm.name)
        if manifest is None:
            return start_run(arm)
        folder = self._checkpoint(arm.name)
        try:
            saved = decode_state((folder / manifest["server"]).read_bytes())
            shared_states = load_states(saved["links"])
            server: Any = from_plain(arm.method.ServerState, saved["method"])
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
        )
        run.ledger.entries = [Entry(**entry) for entry in manifest["setup"]]
        run.records = [record for record in self.records(arm.name) if record.round <= manifest["round"]]
        if [record.round for record in run.records] != list(range(1, run.round + 1)):
            raise self._damaged(arm.name, f"events.jsonl does not have all rounds up to {run.round}")
        for record in run.records:
            run.ledger.entries += record.traffic
        return run

    def round(self, arm: str) -> int:
        """The last whole round of an arm."""
        manifest = self._manifest(arm)
        return 0 if manifest is None else int(manifest["round"])

    def records(self, arm: str) -> list[RoundRecord]:
        """Its rounds so far.

        Raises:
            ExperimentError: a round lacks what this version writes of one.
        """
        rounds = [event for event in self.events() if event["event"] == "round" and event["arm"] == arm]
        try:
            return [RoundRecord.of(event) for event in rounds]
        except KeyError as error:
            what = f"a round in events.jsonl has no {error}; another version of fedistill may have written it"
            raise self._damaged(arm, what) from None

    def model_path(self, arm: str, name: str) -> Path:
        return self.path / "models" / _slug(arm) / f"{name}.safetensors"

    def _checkpoint(self, arm: str) -> Path:
        return self.path / "checkpoint" / _slug(arm)

    def _manifest(self, arm: str) -> dict[str, Any] | None:
        path = self._checkpoint(arm) / _MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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


def read_results(path: Path) -> ResultsJson:
    """Return the content of a run's results.json.

    Raises:
        ExperimentError: there is no run in the folder, or no results that can be read.
    """
    RunFolder.open(path)
    try:
        content: ResultsJson = json.loads((path / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{path}: results.json cannot be read ({error}); write it by: fedistill resume"
            f" {shlex.quote(str(path))}"
        ) from None
    return content


def _slug(arm: str) -> str:
    """A folder's name for an arm; names that differ only in odd characters stay apart."""
    safe = quote(arm, safe="")
    if len(safe) > _LONGEST_NAME:
        safe = f"{safe[:_LONGEST_NAME]}%{hashlib.blake2b(arm.encode(), digest_size=8).hexdigest()}"
    return safe if safe.strip(".") else f"%{safe}"
