"""Arms that fail in a real process: what is said, what is left, and how it goes on."""

import json
from pathlib import Path

import pytest

from helpers.nan_model import write_nan_model
from helpers.program import fedistill

EXPERIMENT = """
rounds = 2
task = { name = "digits", clients = 4, limit = 80, public = 30 }
models = { clients = ["eval_models:fine", "eval_models:Net"], server = "eval_models:fine" }

[[arms]]
method = "local"

[[arms]]
method = "voting"

[[arms]]
method = "fedavg"
models = { clients = ["eval_models:fine"], server = "eval_models:fine" }
"""
WHAT = (
    "the model's outputs are NaN or infinite for {} of {} samples in evaluation mode: lower"
    " train.optimizer.lr, or look for extreme inputs or for statistics that a normalisation layer cannot use"
)
ERRORS = {
    "local": f"round 1, evaluation, client 1: {WHAT.format(359, 359)}",
    "voting": f"round 1, client 1: {WHAT.format(30, 30)}",
    "fedavg": None,
}


@pytest.mark.parametrize("runtime", ["serial", pytest.param("processes", marks=pytest.mark.long)])
def test_nan_in_evaluation_ends_its_arms_alone_and_resume_tries_them_again(
    tmp_path: Path, runtime: str
) -> None:
    (tmp_path / "exp.toml").write_text(EXPERIMENT)
    models = tmp_path / "eval_models.py"
    write_nan_model(models)
    set_runtime = ("--set", f"runtime.kind={runtime}", "--set", "runtime.workers=2")
    commands = [("compare", "exp.toml", "--out", "run", *set_runtime), ("resume", "run")]
    for command in commands:
        ended = fedistill(*command, cwd=tmp_path)
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        arms = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
        assert {arm["method"]: arm["error"] for arm in arms} == ERRORS
        assert [arm["status"] for arm in arms] == ["failed", "failed", "done"]
        assert [len(arm["rounds"]) for arm in arms] == [0, 0, 2]
        for method, error in ERRORS.items():
            assert error is None or f"fedistill: arm {method!r} failed: {error}\n" in ended.stderr
            assert (f"{method} [failed]" in ended.stdout) == (error is not None)
    write_nan_model(models, mended=True)
    ended = fedistill("resume", "run", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    arms = json.loads((tmp_path / "run" / "results.json").read_text())["arms"]
    assert [(arm["status"], arm["error"], len(arm["rounds"])) for arm in arms] == [("done", None, 2)] * 3
