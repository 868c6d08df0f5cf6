"""What a shell is given to complete, in the protocol of zsh; and that it need not wait for torch."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from fedistill.cli import complete, main
from fedistill.communication.codecs.registry import CODECS
from fedistill.config.inputs import SAMPLES
from fedistill.data.sources import NAMES
from fedistill.federation.evaluation import VIEWS
from fedistill.methods.registry import METHODS
from fedistill.models.registry import model_names

EXPERIMENT = """
rounds = 1
[task]
name = "digits"
[[arms]]
method = "dsfl"
[[arms]]
name = "half"
method = "fedavg"
"""
Offered = Callable[[str], list[str]]


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Offered:
    """Returns what a shell offers after some words."""
    program = typer.main.get_command(main.app)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    (tmp_path / "bad.toml").write_text("arms = 3")

    def offer(typed: str) -> list[str]:
        monkeypatch.setenv("_FEDISTILL_COMPLETE", "complete_zsh")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
        with pytest.raises(SystemExit) as ended:
            program(args=[], prog_name="fedistill")
        assert not ended.value.code
        return re.findall(r'"([^"]+)"', capsys.readouterr().out)

    return offer


def test_arms_are_those_of_the_file(offered: Offered) -> None:
    assert offered("fedistill run x.toml --arm ") == ["dsfl", "half"]
    assert offered("fedistill run x.toml --arm ha") == ["half"]
    assert offered("fedistill tune x.toml --arm d") == ["dsfl"]
    for missing in ("missing.toml", "bad.toml", ""):
        assert offered(f"fedistill run {missing} --arm ") == []


def test_keys_and_values_after_set(offered: Offered) -> None:
    compare = "fedistill compare x.toml --set "
    assert offered(f"{compare}rou") == ["rounds="]
    assert {"train.optimizer.lr=", "train.optimizer.name="} <= set(offered(f"{compare}train.opt"))
    assert offered(f"{compare}arms.half.co") == ["arms.half.codec="]
    assert offered(f"{compare}arms.half.codec=si") == ["arms.half.codec=simplex", "arms.half.codec=sign"]
    assert offered(f"{compare}task.name=dig") == ["task.name=digits"]
    assert offered(f"{compare}models.server=resnet-8") == ["models.server=resnet-8"]
    assert offered(f"{compare}arms.half.method=naive") == ["arms.half.method=naive-bayes"]
    assert offered(f"{compare}rounds=") == []


def test_examples_and_views(offered: Offered) -> None:
    assert offered("fedistill init --example di") == ["digits"]
    assert offered("fedistill report run --view client") == ["client@global", "client@own"]


def test_names_read_from_sources_are_those_of_the_registries() -> None:
    assert sorted(complete.method_names()) == sorted(METHODS)
    assert sorted(complete.codec_names()) == sorted(CODECS)
    assert complete.model_names() == [name for kind in SAMPLES for name in model_names(kind)]
    assert complete.task_names() == list(NAMES)
    assert complete.texts_of("federation/evaluation.py", "VIEWS") == list(VIEWS)


def test_no_shell_waits_for_torch() -> None:
    code = """
import sys
from fedistill.cli import complete
complete.complete_example("")
complete.complete_setting(type("Context", (), {"args": []})(), "")
assert all([complete.method_names(), complete.codec_names(), complete.model_names(), complete.task_names()])
assert not {"torch", "numpy", "datasets"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
