"""The short form of ``benchmarks/kills.py``: a run that is killed at random moments ends in the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_killed_runs_end_in_the_bits_of_one_that_was_not() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--kills", "3", "--every", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    said = found.stdout.splitlines()
    assert said[0].startswith("3 kills in ")
    assert sum(int(line.split()[0]) for line in said[1:]) == 3
