"""Makes the tables of docs/privacy.md: mechanisms, methods, fields, and what has been measured."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from writing import between, chosen_settings, table

from fedistill.methods.registry import METHODS
from fedistill.privacy.disclosures import BEFORE_ROUND_1, SOURCES, Source
from fedistill.privacy.registry import MECHANISMS

DOCS = Path(__file__).parent
PAGE = DOCS / "privacy.md"
RESULTS = DOCS.parent / "benchmarks" / "results" / "privacy.json"
Rows = dict[str, dict[str, Any]]


def page() -> str:
    """The text of docs/privacy.md with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    made = {
        "mechanisms": mechanisms(),
        "methods": methods(),
        "fields": fields(),
        "budgets": budgets(),
        "labels": labels(),
    }
    for name, one in made.items():
        text = between(text, name, one, PAGE.name)
    return text


def mechanisms() -> str:
    """A row for each mechanism: what it does, its settings, whom it protects from whom, and its source."""
    rows = []
    for kind, mechanism in MECHANISMS.items():
        what = " ".join((mechanism.__doc__ or "").split("\n\n")[0].split())
        own = [
            f"`{key}`{'' if field.is_required() or field.default is None else f' ({field.default})'}:"
            f" {field.description}"
            for key, field in mechanism.model_fields.items()
            if key not in ("kind", "delta")
        ]
        rows.append((f"`{kind}`", what, "; ".join(own), mechanism.unit, mechanism.against, mechanism.source))
    return table(("kind", "what it does", "settings", "data sets differ by", "against", "source"), rows)


def methods() -> str:
    """A row for each method: whether DP-SGD covers what it sends, and which other mechanisms take it."""
    rows = []
    for name, method in METHODS.items():
        if not method.__module__.startswith("fedistill.") or name == "server-alone":
            continue
        others = [
            kind
            for kind, mechanism in MECHANISMS.items()
            if method.uplink in getattr(mechanism, "messages", ())
            or (kind == "noisy-votes" and name == "voting")
        ]
        beyond = method.beyond_model
        rows.append(
            (
                f"[`{name}`](methods/{name}.md)",
                "yes" if beyond is None else f"no: clients send {beyond}",
                ", ".join(f"`{kind}`" for kind in others) or "-",
            )
        )
    return table(("method", "`dp-sgd`", "others"), rows)


def fields() -> str:
    """A row for each message that clients send, and one for what they say before round 1."""
    sent = {method.uplink for method in METHODS.values()}
    rows = [(f"`{kind.__name__}`", _by_source(sources)) for kind, sources in SOURCES.items() if kind in sent]
    return table(("message", "fields"), [*rows, ("before round 1", _by_source(BEFORE_ROUND_1))])


def _by_source(sources: dict[str, Source]) -> str:
    found: dict[str, list[str]] = {}
    for name, source in sources.items():
        found.setdefault(source.value, []).append(f"`{name}`")
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in found.items())


def _kept(rows: str) -> tuple[list[Rows], str]:
    """Return the rows of each seed that has as many as the first, and a line that names these seeds."""
    kept: dict[str, Rows] = json.loads(RESULTS.read_text(encoding="utf-8"))
    every = {setting: found for setting, found in kept.items() if setting.startswith(f"{rows},")}
    most = max(map(len, every.values()))
    whole = {setting: found for setting, found in every.items() if len(found) == most}
    numbers = ", ".join(setting.rpartition(" ")[2] for setting in whole)
    return [*whole.values()], f"Seed{'s' if len(whole) > 1 else ''}: {numbers}."


def budgets() -> str:
    """A row for each method, and a column for each budget."""
    seeds, _ = _kept("dp-sgd")
    chosen = [
        (f"`{name}`", head, *_tuned(seeds[0][f"{name}/{column}"]))
        for name in _names(seeds)
        for column, head in _columns(seeds).items()
    ]
    return f"{accuracies()}\n\n{table(('method', 'budget', 'noise', 'settings'), chosen)}"


def accuracies() -> str:
    """A row for each method with its accuracy at each budget, and the seeds."""
    seeds, named = _kept("dp-sgd")
    columns = _columns(seeds)
    rows = [
        (f"`{name}`", *(_accuracy(seeds, f"{name}/{column}") for column in columns)) for name in _names(seeds)
    ]
    return f"{table(('method', *columns.values()), rows)}\n\n{named}"


def _names(seeds: list[Rows]) -> list[str]:
    return [*dict.fromkeys(key.split("/")[0] for key in seeds[0])]


def _columns(seeds: list[Rows]) -> dict[str, str]:
    """The budgets, and the heads of their columns."""
    budgets = dict.fromkeys(key.split("/")[1] for key in seeds[0])
    return {one: "no noise" if one == "none" else f"ε = {one}" for one in budgets}


def _tuned(row: dict[str, Any]) -> tuple[str, str]:
    noise = "-" if row["noise"] is None else f"{row['noise']:g}"
    return noise, chosen_settings(row["settings"])


def labels() -> str:
    """A row for each mechanism and noise."""
    seeds, named = _kept("votes")
    rows = []
    for key in seeds[0]:
        method, kind, amount = key.split("/")
        spent = seeds[0][key]["epsilon"]
        setting = "each" if kind == "randomised-response" else "noise"
        rows.append(
            (
                f"`{method}`",
                "no noise" if kind == "none" else f"`{kind}`, {setting} = {amount}",
                "-" if spent is None else f"{spent:.1f}",
                _accuracy(seeds, key),
                chosen_settings(seeds[0][key]["settings"]),
            )
        )
    return f"{table(('method', 'mechanism', 'ε of a client', 'accuracy', 'settings'), rows)}\n\n{named}"


def _accuracy(seeds: list[Rows], key: str) -> str:
    """Return the mean over the seeds, with the range."""
    found = [rows[key]["accuracy"] for rows in seeds]
    if len(found) == 1:
        return f"{found[0]:.1%}"
    return f"{mean(found):.1%} ({min(found):.1%} to {max(found):.1%})"
