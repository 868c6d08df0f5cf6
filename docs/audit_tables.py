"""Makes the tables of docs/audit.md of what benchmarks/audit.py has measured."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from writing import table

DOCS = Path(__file__).parent
PAGE = DOCS / "audit.md"
RESULTS = DOCS.parent / "benchmarks" / "results" / "audit.json"
Rows = Mapping[str, dict[str, Any]]
STRONGEST = ("lira", "trace", "words")
"""The score of each kind of message whose TPR is shown: the one that uses most of what the server has."""


def page() -> str:
    """The text of docs/audit.md with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    made = {"setting": setting, "membership": membership, "shares": shares, "means": means}
    for name, make in made.items():
        text = _between(text, name, make())
    return text


def _between(text: str, name: str, made: str) -> str:
    opens = f"<!-- Made by docs/generate.py: {name}. -->"
    pattern = rf"(?<={re.escape(opens)}\n).*?(?=<!-- As far as here: {name}\. -->)"
    found, count = re.subn(pattern, lambda _: f"\n{made}\n\n", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE.name} has no place for its table of {name}")
    return found


def _rows() -> list[tuple[str, str, dict[str, Any]]]:
    """The setting, the arm and the row of everything that is kept."""
    kept: dict[str, Rows] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [(where, name, row) for where, rows in kept.items() for name, row in rows.items()]


def setting() -> str:
    """With what the figures were made."""
    seeds = sorted({where for where, _, _ in _rows()})
    found = {json.dumps([row["settings"], row["versions"]], sort_keys=True) for _, _, row in _rows()}
    (one,) = found
    settings, versions = json.loads(one)
    asked = ", ".join(f"{key} {value}" for key, value in settings.items())
    made = ", ".join(f"{key} {value}" for key, value in versions.items())
    return f"Tasks: {'; '.join(seeds)}. Audits: {asked}. With {made}."


def membership() -> str:
    """A row for each arm and what was asked."""
    heads = ("arm", "accuracy", "asked", "loss", "entropy", "co-op", "calibrated", "TPR at 1 % FPR", "blind")
    lines = []
    for _, name, row in _rows():
        for asked in dict.fromkeys(one["asked"] for one in row["membership"]):
            scores = {one["score"]: one for one in row["membership"] if one["asked"] == asked}
            best = next(scores[score] for score in STRONGEST if score in scores)
            lines.append(
                (
                    f"`{name}`",
                    _accuracy(row["views"]),
                    asked,
                    *(_area(scores.get(score)) for score in ("loss", "entropy", "co-op")),
                    _area(best),
                    _rate(best["tpr"]["0.01"]),
                    _area(scores.get("blind")),
                )
            )
    return table(heads, lines)


def in_short() -> str:
    """A row for each arm: of each kind of attack, the one that finds out most."""
    heads = ("arm", "members told, AUC", "TPR at 1 % FPR", "mix of classes, off by", "gain of class means")
    lines = []
    for _, name, row in _rows():
        scores = [one for one in row["membership"] if one["score"] in STRONGEST]
        best = max(scores, key=lambda one: one["auc"]["value"])
        guesses = row["label_shares"]
        guess = min(guesses, key=lambda one: one["total_variation"])
        gains = [one["gain"] for one in row["class_means"]]
        lines.append(
            (
                f"`{name}`",
                _area(best),
                _rate(best["tpr"]["0.01"]),
                f"{guess['total_variation']:.2f} of {guess['uniform']['total_variation']:.2f}",
                f"{max(gains):.2f}" if gains else "-",
            )
        )
    return table(heads, lines)


def shares() -> str:
    """A row for each arm and way of guessing."""
    heads = ("arm", "guessed from", "total variation", "all equal", "KL divergence", "all equal")
    lines = [
        (
            f"`{name}`",
            one["how"],
            f"{one['total_variation']:.3f}",
            f"{one['uniform']['total_variation']:.3f}",
            f"{one['divergence']:.3f}",
            f"{one['uniform']['divergence']:.3f}",
        )
        for _, name, row in _rows()
        for one in row["label_shares"]
    ]
    return table(heads, lines)


def means() -> str:
    """A row for each arm whose class means can be decoded."""
    heads = ("arm", "decoded from", "class means", "of one sample", "gain", "direction")
    lines = [
        (
            f"`{name}`",
            one["what"],
            str(one["means"]),
            str(one["single"]),
            f"{one['gain']:.2f}",
            f"{one['direction']:.2f}",
        )
        for _, name, row in _rows()
        for one in row["class_means"]
    ]
    return table(heads, lines)


def _accuracy(views: Mapping[str, float]) -> str:
    view = next(one for one in ("server@global", "client@global") if one in views)
    return f"{views[view]:.1%} ({view.partition('@')[0]})"


def _area(attack: Mapping[str, Any] | None) -> str:
    if attack is None:
        return "-"
    found = attack["auc"]
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _rate(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"
