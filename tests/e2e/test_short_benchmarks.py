"""The short forms of the benchmarks of attacks, of privacy and of secure sums, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedistill.privacy.accounting import randomised_response_epsilon

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, out: Path, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """What a benchmark prints, and the rows of its only setting."""
    command = [sys.executable, str(BENCHMARKS / name), *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (rows,) = json.loads(out.read_text()).values()
    return done.stdout.splitlines(), rows


@pytest.mark.long
def test_one_family_under_one_attack_and_hostile_numbers(tmp_path: Path) -> None:
    given = ("--families", "statistics", "--seeds", "0", "--runs", str(tmp_path / "runs"))
    attacks = (*given, "--shares", "0.2", "--attacks", "shifted-labels", "sign-flip")
    said, rows = run("attacks.py", tmp_path / "rows.json", *attacks)
    assert len(said) == len(rows) == 6, "sign-flip does not fit, and has no row"
    alone = rows["statistics/none/silent"]["accuracy"]
    lying = {defence: rows[f"statistics/{defence}/shifted-labels"] for defence in ("none", "recommended")}
    assert lying["none"]["accuracy"] < alone - 0.03
    assert lying["recommended"]["accuracy"] > alone - 0.01
    assert lying["recommended"]["distrusted"] == lying["recommended"]["liars"]
    assert lying["none"]["distrusted"] is None
    assert lying["none"]["tuning"]["trials"] == len({"default", 2, 5, 15}), "all levels that are usual"
    again, same = run("attacks.py", tmp_path / "rows.json", *attacks)
    assert again == [], "what is kept is not run again"
    assert same == rows

    _, hostile = run("attacks.py", tmp_path / "hostile.json", *given, "--hostile")
    for lie in ("huge", "negative", "x 1000"):
        refused = hostile[f"statistics/none/{lie}"]
        assert refused["refused"] == refused["liars"]
        assert refused["accuracy"] == alone, "they are as good as silent"
    believed = hostile["statistics/none/zero"]
    assert believed["refused"] == []
    assert alone - 0.02 < believed["accuracy"] < alone
    assert hostile["statistics/recommended/silent"] | {"seconds": 0} == (
        rows["statistics/recommended/silent"] | {"seconds": 0}
    )


def test_votes_with_noise_and_without(tmp_path: Path) -> None:
    _, rows = run("privacy.py", tmp_path / "rows.json", "--short", "--runs", str(tmp_path / "runs"))
    plain, noisy = rows["voting/none/"], rows["voting/randomised-response/1"]
    assert plain["epsilon"] is None
    assert noisy["epsilon"] == randomised_response_epsilon(1.0, 10, 100, 1e-5)
    assert 0.15 < noisy["accuracy"] < plain["accuracy"]


def test_secure_sums_of_votes(tmp_path: Path) -> None:
    _, rows = run("secure_sums.py", tmp_path / "rows.json", "--arms", "voting", "--seeds", "0")
    plain, secure = rows["voting/plain"], rows["voting/secure"]
    assert secure["masked"] > 0 == plain["masked"]
    assert secure["up"] > plain["up"], "masked integers have their full width"
    assert secure["accuracy"] > 0.5
