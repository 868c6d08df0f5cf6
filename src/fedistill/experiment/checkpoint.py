"""The last two saved rounds of an arm on disk, each with the digests of all that it needs.

::

    round-N.json    the manifest of round N: where its states are, and what they do not hold
    states-M.bin    what was new since the saved round before (`fedistill.experiment.state_store`)

A manifest is written after all that it names, so that a round is saved with two files, however many clients
have worked in it. One that is damaged, or names what is, gives way to that of the round before. No byte is
used before its digest has been compared: what a flipped bit changes would be other results without a word.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fedistill.communication.protocol.shared_state import MEMORIES, SharedState, dump_held, load_held
from fedistill.config.section import RawTable, Section
from fedistill.errors import ExperimentError
from fedistill.experiment import events
from fedistill.experiment.state_shelf import StateShelf
from fedistill.experiment.state_store import NAME, Damaged, SegmentEntry, StateStore
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_states import ClientStates
from fedistill.federation.history import ArmRun, Event, RoundRecord
from fedistill.federation.ledger import Entry
from fedistill.federation.scores import Scores
from fedistill.federation.setup import start_run
from fedistill.methods.base import AnyState
from fedistill.state import State, decode_state, encode_state, from_plain, to_plain, write_file
from fedistill.training.model_state import ModelState, WeightLayout

_MANIFEST = re.compile(r"round-(\d+)\.json")
_Segment = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
"""The name of a file in the checkpoint's own folder."""
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class _Manifest(Section):
    """What a round has left.

    Attributes:
        server: the blob with the server's state.
        table: the blob with the digests of clients' states and of what the server shares with each.
        segments: where all blobs are.
        events: digest of the arm's rounds in ``events.jsonl``.
        correct, scores: the two parts of clients' `Scores`, of which the second is mostly empty.
        setup: what the ledger has of the time before round 1.
        layouts: digests of the shapes of the arm's models, which must not change.
    """

    round: int = Field(ge=1)
    server: _Digest
    table: _Digest
    segments: dict[_Segment, SegmentEntry]
    events: str
    correct: dict[int, list[int]]
    scores: dict[int, RawTable]
    setup: list[Entry]
    layouts: dict[str, str]


class Checkpoint:
    """The saved rounds of an arm, in a folder of their own."""

    def __init__(self, folder: Path, arm: str) -> None:
        self.folder = folder
        self.arm = arm
        self._store = StateStore(folder)
        self._shelf = StateShelf(self._store, arm)
        self._shared: dict[int, SharedState] = {}
        self._last: _Manifest | None = None

    def save(self, arm: ReadyArm, run: ArmRun, rounds: Sequence[Event]) -> None:
        """Save an arm after a complete round; only what is new since the last saved one is written.

        From then on, if not before, its clients' states are read from here.

        Args:
            rounds: the lines of ``events.jsonl`` that were added for the arm since its last saved round.

        Raises:
            RuntimeFailure: what was saved before has been damaged since.
        """
        old = self._last
        run.clients = run.clients.on(self._shelf)
        links = self._put_links(run)
        states = {str(client): key.hex() for client, key in run.clients.keys_by_client.items()}
        table = self._store.put(encode_state({"clients": states, "links": dump_held(links)}), deflate=True)
        mean = {} if run.mean is None else {"mean": to_plain(run.mean)}
        server = self._store.put(encode_state({"method": to_plain(run.server), **mean}))
        needed = {table, server, *self._shelf.blobs(run.clients), *_digests(links)}
        manifest = _Manifest(
            round=run.round,
            server=server.hex(),
            table=table.hex(),
            segments=self._shelf.seal(needed),
            events=events.digest(rounds, "" if old is None else old.events),
            correct={client: scores.correct for client, scores in run.scores.items()},
            scores={client: found for client, one in run.scores.items() if (found := one.beyond_counts())},
            setup=run.ledger.of_round(0),
            layouts=_layouts(arm),
        )
        content = manifest.model_dump(mode="json")
        write_file(
            self._path(run.round), json.dumps({"manifest": content, "digest": _digest_of(content)}).encode()
        )
        self._remove_all_but([manifest] if old is None else [manifest, old])
        self._lay_down(links)
        self._shared, self._last = links, manifest

    def _put_links(self, run: ArmRun) -> dict[int, SharedState]:
        """Put what the server shares with clients, most of which clients' states have in common with it."""
        for client, shared in run.shared_states.items():
            before = self._shared.get(client)
            if before is not shared:
                for name, part in shared.parts.items():
                    if not part.is_elsewhere:
                        same = before.parts.get(name) if before else None
                        self._store.put(part.data, deflate=True, like=same.digest if same else b"")
        return dict(run.shared_states)

    def _lay_down(self, links: Mapping[int, SharedState]) -> None:
        """Hold the codecs' memories on the disk alone: each client has its own, used once in a round."""
        for shared in links.values():
            for name in MEMORIES & shared.parts.keys():
                if not shared.parts[name].is_elsewhere:
                    shared.parts[name].lie(self._shelf.blob)

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
            except Damaged as error:
                damage.append(f"round {number}: {error}")
            else:
                if damage:
                    warn(f"its checkpoint is damaged ({damage[0]}): goes on after round {number}")
                return run
        if damage:
            raise self._lost("; ".join(damage))
        if (self.folder / "manifest.json").exists():
            raise self._lost("another version of fedistill has written it")
        self._last, self._shared = None, {}
        run = start_run(arm)
        run.clients = ClientStates(self._shelf)
        return run

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
            raise Damaged(f"events.jsonl does not have all rounds up to {manifest.round}")
        if events.digest(done) != manifest.events:
            raise Damaged(f"events.jsonl has other rounds up to {manifest.round} than were played")
        self._check_models(manifest, arm)
        self._store.open(manifest.segments)
        saved = decode_state(self._store.get(bytes.fromhex(manifest.server)))
        table = decode_state(self._store.get(bytes.fromhex(manifest.table)))
        keys = {int(client): bytes.fromhex(key) for client, key in table["clients"].items()}
        self._shelf.check(keys.values())
        run = ArmRun(
            round=manifest.round,
            server=_server_state(arm, saved["method"]),
            clients=ClientStates(self._shelf, dict(sorted(keys.items()))),
            ledger=start_run(arm).ledger,
            shared_states=dict(sorted(load_held(table["links"], self._store.get).items())),
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
        self._lay_down(run.shared_states)
        self._last, self._shared = manifest, dict(run.shared_states)
        return run

    def _check_models(self, manifest: _Manifest, arm: ReadyArm) -> None:
        now = _layouts(arm)
        changed = [name for name in manifest.layouts if now.get(name) != manifest.layouts[name]]
        if changed:
            raise ExperimentError(
                f"arm {self.arm!r}: weights of the model {', '.join(changed)} have other shapes than when the"
                " run began: restore the model, or start a new run"
            )

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
                raise Damaged(f"{path.name} is not as it was written")
            manifest = _Manifest.model_validate(content["manifest"])
        except OSError as error:
            raise Damaged(f"{path.name}: {error.strerror}") from None
        except ValidationError:
            raise Damaged(
                f"{path.name} is not as it was written, or another version of fedistill has written it"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{path.name} is not as it was written") from None
        if manifest.round != number:
            raise Damaged(f"{path.name} is the manifest of round {manifest.round}")
        return manifest

    def _remove_all_but(self, manifests: Sequence[_Manifest]) -> None:
        """Remove what only rounds before these need, or rounds after these that were damaged."""
        numbers = {manifest.round for manifest in manifests}
        for number in self._saved():
            if number not in numbers:
                self._path(number).unlink()
        self._store.remove_all_but({name for manifest in manifests for name in manifest.segments})

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


def _digests(links: dict[int, SharedState]) -> set[bytes]:
    return {part.digest for shared in links.values() for part in shared.parts.values()}


def _layouts(arm: ReadyArm) -> dict[str, str]:
    return {name: _digest(_described(layout)) for name, layout in arm.federation.layouts.items()}


def _described(layout: WeightLayout) -> bytes:
    return repr((layout.parts, layout.buffers, len(layout.integers.values))).encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest_of(content: RawTable) -> str:
    return _digest(json.dumps(content, sort_keys=True).encode())
