"""The last two complete rounds of an arm on disk, each with a digest of every file that it needs.

::

    round-N.json            the manifest of round N: its files, their digests, and what they do not hold
    server-N.safetensors    the server's state after round N
    client-C-N.safetensors  the state of client C after the last round in which it worked

A manifest is written after all that it names. One that is damaged, or names a file that is, gives way to that
of the round before, so that a run loses one round and not all of them. No byte of a file is used before its
digest has been compared: what a flipped bit changes would be other results without a word.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fedistill.communication.protocol.shared_state import dump_states, load_states
from fedistill.config.section import RawTable, Section
from fedistill.errors import ExperimentError
from fedistill.experiment import events
from fedistill.federation.arm import ReadyArm, start_run
from fedistill.federation.history import ArmRun, Event, RoundRecord
from fedistill.federation.ledger import Entry
from fedistill.federation.scores import Scores
from fedistill.methods.base import AnyState
from fedistill.state import State, decode_state, encode_state, from_plain, to_plain, write_file, write_files
from fedistill.training.model_state import ModelState, WeightLayout

_MANIFEST = re.compile(r"round-(\d+)\.json")
_KEPT = 2
_FileName = Annotated[str, Field(pattern=r"^(server|client-\d+)-\d+\.safetensors$")]
"""Of a file in the checkpoint's own folder."""


class _Damaged(Exception):
    """A manifest or a file that it names is not as it was written."""


class _Manifest(Section):
    """What a round has left.

    Attributes:
        clients: the file of each client that has worked.
        digests: by file. ``events``: of the arm's rounds in ``events.jsonl``.
        correct, scores: the two parts of clients' `Scores`, of which the second is mostly empty.
        setup: what the ledger has of the time before round 1.
        layouts: digests of the shapes of the arm's models, which must not change.
    """

    round: int = Field(ge=1)
    server: _FileName
    clients: dict[int, _FileName]
    digests: dict[_FileName, str]
    events: str
    correct: dict[int, list[int]]
    scores: dict[int, RawTable]
    setup: list[Entry]
    layouts: dict[str, str]

    @property
    def files(self) -> set[str]:
        return {self.server, *self.clients.values()}


class Checkpoint:
    """The saved rounds of an arm, in a folder of their own."""

    def __init__(self, folder: Path, arm: str) -> None:
        self.folder = folder
        self.arm = arm

    def save(self, arm: ReadyArm, run: ArmRun, rounds: Sequence[Event]) -> None:
        """Save an arm after a complete round; only clients that have worked since are written again.

        Args:
            rounds: the lines of ``events.jsonl`` that were added for the arm since its last checkpoint.
        """
        old = next((self._read(n) for n in self._saved() if n < run.round), None)
        files = {} if old is None else dict(old.clients)
        digests = {} if old is None else dict(old.digests)
        written: dict[str, bytes] = {}
        for client in run.records[-1].clients if run.records else []:
            files.pop(client, None)
            if client in run.clients:
                files[client] = f"client-{client}-{run.round}.safetensors"
                written[files[client]] = run.clients[client]
        server = f"server-{run.round}.safetensors"
        mean = {} if run.mean is None else {"mean": to_plain(run.mean)}
        links = dump_states(run.shared_states)
        written[server] = encode_state({"method": to_plain(run.server), "links": links, **mean})
        digests |= {name: _digest(data) for name, data in written.items()}
        named = {server, *files.values()}
        manifest = _Manifest(
            round=run.round,
            server=server,
            clients=files,
            digests={name: digests[name] for name in named},
            events=events.digest(rounds, "" if old is None else old.events),
            correct={client: scores.correct for client, scores in run.scores.items()},
            scores={client: found for client, one in run.scores.items() if (found := one.beyond_counts())},
            setup=run.ledger.of_round(0),
            layouts=_layouts(arm),
        )
        write_files(self.folder, written)
        content = manifest.model_dump(mode="json")
        write_file(
            self._path(run.round), json.dumps({"manifest": content, "digest": _digest_of(content)}).encode()
        )
        self._remove_all_but([manifest] if old is None else [manifest, old])

    def restore(
        self, arm: ReadyArm, rounds: Sequence[Event], warn: Callable[[str], None] = lambda what: None
    ) -> ArmRun:
        """Return an arm as it was after its last complete round, or before round 1.

        Args:
            rounds: the lines of the arm's rounds in ``events.jsonl``.
            warn: is told if the last round is damaged, and the one before is restored.

        Raises:
            ExperimentError: all saved rounds are damaged, or a model has changed since.
            TrainingError: the arm cannot start.
        """
        damage: list[str] = []
        for number in self._saved():
            try:
                run = self._restored(self._read(number), arm, rounds)
            except _Damaged as error:
                damage.append(f"round {number}: {error}")
            else:
                if damage:
                    warn(f"its checkpoint is damaged ({damage[0]}): goes on after round {number}")
                return run
        if damage:
            raise self._lost("; ".join(damage))
        if (self.folder / "manifest.json").exists():
            raise self._lost("another version of fedistill has written it")
        return start_run(arm)

    def last_round(self) -> int:
        """Return the last complete round, damaged or not; 0 before the first."""
        return next(iter(self._saved()), 0)

    def records(self, rounds: Sequence[Event]) -> list[RoundRecord]:
        """Return the records of rounds in ``events.jsonl``.

        Raises:
            ExperimentError: a round lacks what this version writes of one.
        """
        try:
            return [RoundRecord.from_json(event) for event in rounds]
        except (KeyError, TypeError) as error:
            raise self._lost(
                f"a round in events.jsonl cannot be read ({error}); another version of fedistill may have"
                " written it"
            ) from None

    def _restored(self, manifest: _Manifest, arm: ReadyArm, rounds: Sequence[Event]) -> ArmRun:
        done = [event for event in rounds if event["round"] <= manifest.round]
        if [event["round"] for event in done] != list(range(1, manifest.round + 1)):
            raise _Damaged(f"events.jsonl does not have all rounds up to {manifest.round}")
        if events.digest(done) != manifest.events:
            raise _Damaged(f"events.jsonl has other rounds up to {manifest.round} than were played")
        self._check_models(manifest, arm)
        saved = decode_state(self._content(manifest, manifest.server))
        run = ArmRun(
            round=manifest.round,
            server=_server_state(arm, saved["method"]),
            clients={client: self._content(manifest, name) for client, name in manifest.clients.items()},
            ledger=start_run(arm).ledger,
            shared_states=load_states(saved["links"]),
            records=self.records(done),
            scores={
                client: Scores.of_json(correct, manifest.scores.get(client, {}))
                for client, correct in manifest.correct.items()
            },
            mean=from_plain(ModelState, saved["mean"]) if "mean" in saved else None,
        )
        run.ledger.entries = list(manifest.setup)
        for record in run.records:
            run.ledger.entries += record.traffic
        return run

    def _check_models(self, manifest: _Manifest, arm: ReadyArm) -> None:
        now = _layouts(arm)
        changed = [name for name in manifest.layouts if now.get(name) != manifest.layouts[name]]
        if changed:
            raise ExperimentError(
                f"arm {self.arm!r}: weights of the model {', '.join(changed)} have other shapes than when the"
                " run began: restore the model, or start a new run"
            )

    def _content(self, manifest: _Manifest, name: str) -> bytes:
        """Return the bytes of a file after comparing their digest."""
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise _Damaged(f"{name}: {error.strerror}") from None
        if _digest(data) != manifest.digests.get(name):
            raise _Damaged(f"{name} is not as it was written")
        return data

    def _saved(self) -> list[int]:
        """Return the rounds that have a manifest, the last one first."""
        found = [_MANIFEST.fullmatch(path.name) for path in self.folder.glob("round-*.json")]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number}.json"

    def _read(self, number: int) -> _Manifest:
        path = self._path(number)
        try:
            content = json.loads(path.read_bytes())
            if content["digest"] != _digest_of(content["manifest"]):
                raise _Damaged(f"{path.name} is not as it was written")
            manifest = _Manifest.model_validate(content["manifest"])
        except OSError as error:
            raise _Damaged(f"{path.name}: {error.strerror}") from None
        except (ValidationError, ValueError, KeyError, TypeError):
            raise _Damaged(f"{path.name} is not as it was written") from None
        if manifest.round != number:
            raise _Damaged(f"{path.name} is the manifest of round {manifest.round}")
        return manifest

    def _remove_all_but(self, manifests: Sequence[_Manifest]) -> None:
        """Remove what only rounds before these need, or rounds after these that were damaged."""
        named = {name for manifest in manifests for name in manifest.files}
        numbers = {manifest.round for manifest in manifests}
        for number in self._saved():
            if number not in numbers:
                self._path(number).unlink()
        for path in self.folder.glob("*.safetensors"):
            if path.name not in named:
                path.unlink()

    def _lost(self, what: str) -> ExperimentError:
        return ExperimentError(
            f"arm {self.arm!r}: its checkpoint is damaged ({what}); delete the folder {self.folder} to play"
            " this arm again from round 1"
        )


def _server_state(arm: ReadyArm, plain: State) -> AnyState:
    """Return the server's state; since its bytes are those that were written, only the method can differ."""
    try:
        state: AnyState = from_plain(arm.method.ServerState, plain)
    except ValueError as error:
        raise ExperimentError(
            f"arm {arm.name!r}: its method is not the one that the run began with ({error}): restore it, or"
            " start a new run"
        ) from None
    return state


def _layouts(arm: ReadyArm) -> dict[str, str]:
    return {name: _digest(_described(layout)) for name, layout in arm.federation.layouts.items()}


def _described(layout: WeightLayout) -> bytes:
    return repr((layout.parts, layout.buffers, len(layout.integers.values))).encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest_of(content: RawTable) -> str:
    return _digest(json.dumps(content, sort_keys=True).encode())
