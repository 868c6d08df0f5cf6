"""The sides of benchmarks/peers.py that need no other library, as processes that are asked for rounds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("network", ["mlp-s", "cnn-s"])
def test_the_loop_without_a_framework_plays_rounds_and_learns(tmp_path: Path, network: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(120) % 10
    pixels = torch.zeros(120, 1, 28, 28, dtype=torch.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, 2 * label : 2 * label + 6] = 255
    data = {"samples": pixels, "labels": labels, "sizes": torch.tensor([30, 50, 40])}
    torch.save(data | {"test_samples": pixels, "test_labels": labels}, tmp_path / "images.pt")
    settings: dict[str, Any] = {"clients": 3, "participants": 3, "rounds": 12, "network": network, "seed": 0}
    sides = BENCHMARKS / "peer_sides"
    paths = os.pathsep.join([str(BENCHMARKS), str(sides), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(sides / "plain.py"), tmp_path / "images.pt", json.dumps(settings)],
        input="round\n" * 12,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    ready, *rounds, score = map(json.loads, done.stdout.splitlines())
    assert ready["versions"]["torch"] == torch.__version__
    assert len(rounds) == 12
    assert all(one["processor"] > 0 and one["seconds"] > 0 for one in rounds)
    assert score["accuracy"] > 0.9
