"""The short form of the benchmark of attacks, in a process of its own: one family, tuned, one attack."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
SETTING = "share 0.2, seed 0"


def run(place: Path) -> tuple[str, dict[str, Any]]:
    given = ["--families", "statistics", "--attacks", "shifted-labels", "sign-flip", "--seeds", "0"]
    places = ["--out", str(place / "rows.json"), "--runs", str(place / "runs")]
    command = [sys.executable, str(BENCHMARK), "--shares", "0.2", *given, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, json.loads((place / "rows.json").read_text())[SETTING]


def test_one_family_under_one_attack(tmp_path: Path) -> None:
    said, rows = run(tmp_path)
    assert len(said.splitlines()) == len(rows) == 6, "sign-flip does not fit, and has no row"
    alone = rows["statistics/none/silent"]["accuracy"]
    lying = {defence: rows[f"statistics/{defence}/shifted-labels"] for defence in ("none", "recommended")}
    assert lying["none"]["accuracy"] < alone - 0.03
    assert lying["recommended"]["accuracy"] > alone - 0.01
    assert lying["recommended"]["distrusted"] == lying["recommended"]["liars"]
    assert lying["none"]["distrusted"] is None
    assert lying["none"]["tuning"]["trials"] == len({"default", 2, 5, 15}), "all levels that are usual"
    again, same = run(tmp_path)
    assert again == "", "what is kept is not run again"
    assert same == rows
