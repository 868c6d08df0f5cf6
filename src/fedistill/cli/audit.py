"""The command ``fedistill audit``: options, what it shows, and how it ends."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedistill.cli.console import Folder, Json, Quiet, console, print_json, print_list, say, typed_command
from fedistill.errors import RuntimeFailure

if TYPE_CHECKING:
    from fedistill.federation.history import RoundRecord
    from fedistill.studies.audit.audit_json import AuditJson, EstimateJson


def audit_command(
    folder: Folder,
    arm: Annotated[
        list[str] | None, typer.Option(help="Name of an arm to audit. May be repeated. Default: all arms.")
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(
            min=2, help="Shadow runs of each client, on samples of the test set, which calibrate scores."
        ),
    ] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, help="Of how many of a client's messages of a kind scores are averaged.")
    ] = 3,
    clients: Annotated[int, typer.Option(min=1, help="Clients to audit, at most.")] = 10,
    candidates: Annotated[
        int, typer.Option(min=1, help="Members, and as many non-members, of each client, at most.")
    ] = 250,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the audit, not of the run.")] = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Play a run again and measure what its server could learn of clients' data from the messages."""
    from fedistill.studies.audit.arm_evidence import Settings
    from fedistill.studies.audit.audit import audit

    settings = Settings(shadows, rounds, clients, candidates, seed)
    try:
        found = audit(folder, settings, arm or [], typed_command(), _Shown(quiet))
    except KeyboardInterrupt as stopped:
        _give_up(str(stopped) or "stopped")
    except (RuntimeFailure, OSError) as error:
        _give_up(str(error))
    if json:
        print_json({"folder": str(folder), **found})
    else:
        _print_audit(found, folder)


def _give_up(what: str) -> NoReturn:
    again = shlex.join(["fedistill", *sys.argv[1:]])
    say(f"fedistill: {what}; audited arms are kept, and the run is unchanged; continue with: {again}")
    sys.exit(1)


class _Shown:
    """Says how an audit goes on, one line per arm and stage."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def replayed(self, arm: str, record: "RoundRecord", rounds: int) -> None:
        if not self._quiet and record.round == rounds:
            say(f"{arm}: {rounds} rounds replayed; frames, views and state are those of the run")

    def audited(self, arm: str, client: int, done: int, clients: int) -> None:
        if not self._quiet:
            say(f"{arm}: client {client} audited ({done} of {clients})")


def _print_audit(found: "AuditJson", folder: Path) -> None:
    _print(
        "Who is in a client's private set (0.5: not told; blind: a control)",
        ("arm", "what is asked", "score", "members + others", "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR"),
        [
            (
                arm["name"],
                attack["asked"],
                attack["score"],
                f"{attack['members']:,} + {attack['others']:,}",
                _estimate(attack["auc"]),
                *(_share(one) for one in attack["tpr"].values()),
            )
            for arm in found["arms"]
            for attack in arm["membership"]
        ],
    )
    _print(
        "A client's shares of classes (in brackets: the guess that all are equal)",
        ("arm", "guessed from", "total variation", "KL divergence"),
        [
            (
                arm["name"],
                one["how"],
                f"{one['total_variation']:.3f} ({one['uniform']['total_variation']:.3f})",
                f"{one['divergence']:.3f} ({one['uniform']['divergence']:.3f})",
            )
            for arm in found["arms"]
            for one in arm["label_shares"]
        ],
    )
    _print(
        "A client's class means (gain: how much of what sets them apart from the test set's is decoded)",
        ("arm", "decoded from", "means", "of one sample", "gain", "direction"),
        [
            (
                arm["name"],
                one["what"],
                str(one["means"]),
                str(one["single"]),
                f"{one['gain']:.2f}",
                f"{one['direction']:.2f}",
            )
            for arm in found["arms"]
            for one in arm["class_means"]
        ],
    )
    for arm in found["arms"]:
        for note in arm["notes"]:
            console.print(f"{arm['name']}: {note}", markup=False, soft_wrap=True, highlight=False)
    console.print(f"audit: {folder / 'audit.json'}", markup=False, soft_wrap=True, highlight=False)


def _print(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if rows:
        console.print(title, markup=False, soft_wrap=True, highlight=False)
        print_list(heads, rows, as_json=False)


def _estimate(found: "EstimateJson") -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _share(found: "EstimateJson | None") -> str:
    if found is None:
        return "too few non-members"
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"
