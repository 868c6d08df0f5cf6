"""Makes the tables of docs/secure-sums.md of what benchmarks/secure_sums.py has measured."""

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

from writing import table

from fedistill.config.units import format_bytes

DOCS = Path(__file__).parent
PAGE = DOCS / "secure-sums.md"
RESULTS = DOCS.parent / "benchmarks" / "results" / "secure_sums.json"
Rows = dict[str, dict[str, Any]]


def page() -> str:
    """The text of docs/secure-sums.md with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    kept: dict[str, Rows] = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, made in {"measured": measured(kept), "sharing": sharing(kept["sharing"])}.items():
        pattern = (
            rf"(?<=<!-- Made by docs/generate\.py: {name}\. -->\n).*?(?=<!-- As far as here: {name}\. -->)"
        )
        text, count = re.subn(pattern, lambda _, made=made: f"\n{made}\n\n", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE.name} has no place for its table of {name}")
    return text


def measured(kept: dict[str, Rows]) -> str:
    """A row for each arm: bytes and accuracy without secure sums and with, over seeds that have both."""
    numbers = ", ".join(sorted(name.removeprefix("seed ") for name in _seeds(kept)))
    rows = []
    for arm, both in _pairs(kept).items():
        plain, secure = [pair[0] for pair in both], [pair[1] for pair in both]
        cells = [
            format_bytes(round(mean(row[key] for row in form)))
            for key, form in (
                ("up", plain),
                ("up", secure),
                ("masked", secure),
                ("down", plain),
                ("down", secure),
            )
        ]
        accuracies = [f"{mean(row['accuracy'] for row in form):.1%}" for form in (plain, secure)]
        rows.append((f"`{arm}`", *cells, *accuracies, str(len(both))))
    heads = (
        "arm",
        "up",
        "up, secure",
        "of which masked integers",
        "down",
        "down, secure",
        "accuracy",
        "accuracy, secure",
        "seeds",
    )
    about = (
        "Digits, 10 clients, Dirichlet 0.5, 200 public images, `mlp-s`, 3 rounds (statistics: one). Bytes of"
        " one client in the last round in which anything crosses, the mean over clients; accuracy of the"
        f" server's model on the test set. Default codecs and settings; means over seeds {numbers}. Made by"
        " `python benchmarks/secure_sums.py`."
    )
    return f"{about}\n\n{table(heads, rows)}"


def in_short() -> str:
    """A row for each arm: its bytes and accuracy with secure sums, against those without."""
    kept: dict[str, Rows] = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = []
    for arm, both in _pairs(kept).items():
        up, down = (
            mean(secure[way] for _, secure in both) / mean(plain[way] for plain, _ in both)
            for way in ("up", "down")
        )
        lost = 100 * mean(plain["accuracy"] - secure["accuracy"] for plain, secure in both)
        rows.append((f"`{arm}`", f"{up:.1f}", f"{down:.1f}", f"{round(lost, 1) + 0.0:.1f}"))
    return table(("arm", "bytes up, to those without", "down", "points lost"), rows)


def _seeds(kept: dict[str, Rows]) -> dict[str, Rows]:
    return {name: rows for name, rows in kept.items() if name.startswith("seed ")}


def _pairs(kept: dict[str, Rows]) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """The rows of each arm without secure sums and with them, of seeds that have both."""
    seeds = [*_seeds(kept).values()]
    return {
        arm: [
            (one[f"{arm}/plain"], one[f"{arm}/secure"])
            for one in seeds
            if f"{arm}/plain" in one and f"{arm}/secure" in one
        ]
        for arm in dict.fromkeys(key.split("/")[0] for one in seeds for key in one)
    }


def sharing(kept: Rows) -> str:
    """A row for each number of clients: what one secret takes to share, and to join again."""
    rows = [
        (clients, str(row["needed"]), f"{row['share_seconds']:.4f} s", f"{row['join_seconds']:.4f} s")
        for clients, row in kept.items()
    ]
    about = "One secret, seconds of one core, by `python benchmarks/secure_sums.py --sharing`:"
    return f"{about}\n\n{table(('clients', 'needed', 'to share', 'to join'), rows)}"
