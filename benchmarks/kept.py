"""Rows that measurements leave, each under its setting and its name, in one JSON file."""

import json
from pathlib import Path
from typing import Any


def keep(path: Path, setting: str, name: str, row: dict[str, Any]) -> None:
    """Add a row to the file, in place of an earlier one of this name."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept.setdefault(setting, {})[name] = row
    path.write_text(json.dumps(kept, indent=1) + "\n")


def kept_rows(path: Path, setting: str) -> dict[str, Any]:
    """Return the rows of a setting that the file has, by name; none if there is no such file."""
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return kept.get(setting, {})
