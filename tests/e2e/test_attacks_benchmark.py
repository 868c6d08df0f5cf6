"""The short form of the benchmark of attacks: one family, tuned, under one attack."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "attacks.py"
SETTING = "share 0.2, seed 0"


def test_one_family_under_one_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    given = ["--families", "statistics", "--attacks", "shifted-labels", "sign-flip"]
    places = ["--out", str(out), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["attacks.py", "--seeds", "0", "--shares", "0.2", *given, *places])
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    rows = json.loads(out.read_text())[SETTING]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(rows) == 6, "sign-flip does not fit, and has no row"
    alone = rows["statistics/none/silent"]["accuracy"]
    lying = {defence: rows[f"statistics/{defence}/shifted-labels"] for defence in ("none", "recommended")}
    assert lying["none"]["accuracy"] < alone - 0.03
    assert lying["recommended"]["accuracy"] > alone - 0.01
    assert lying["recommended"]["distrusted"] == lying["recommended"]["liars"]
    assert lying["none"]["distrusted"] is None
    assert lying["none"]["tuning"]["trials"] == len({"default", 2, 5, 15}), "all levels that are usual"
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    assert capsys.readouterr().out == "", "what is kept is not run again"
    assert json.loads(out.read_text())[SETTING] == rows
