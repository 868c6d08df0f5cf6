"""Rows that measurements leave, each under its setting and its name, in one JSON file."""

import json
from pathlib import Path
from typing import Any

Kept = dict[str, dict[str, dict[str, Any]]]


def keep(path: Path, setting: str, name: str, row: dict[str, Any]) -> None:
    """Add a row to the file, in place of an earlier one of this name; each row has a line of its own."""
    kept: Kept = json.loads(path.read_text()) if path.exists() else {}
    kept.setdefault(setting, {})[name] = row
    settings = (
        f" {json.dumps(setting)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        + "\n }"
        for setting, rows in kept.items()
    )
    path.write_text("{\n" + ",\n".join(settings) + "\n}\n")


def kept_rows(path: Path, setting: str) -> dict[str, Any]:
    """Return the rows of a setting that the file has, by name; none if there is no such file."""
    kept: Kept = json.loads(path.read_text()) if path.exists() else {}
    return kept.get(setting, {})
