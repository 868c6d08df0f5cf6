"""What is in the wheel: installed beside the libraries that the tests have, and used in an empty folder."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from helpers.files import Files
from helpers.program import PATIENCE

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, in an environment that has the wheel, and sees the libraries of this one."""
    place = tmp_path_factory.mktemp("wheel")
    source, empty = place / "source", place / "empty"
    source.mkdir()
    for name in ("src", "examples"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, source, cwd=place)
    (wheel,) = place.glob("*.whl")
    venv.create(empty)
    scripts = empty / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
    (Path(own) / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=place)
    found = run(python, "-c", "import fedistill; print(fedistill.__file__)", cwd=place)
    assert found.startswith(own), "the wheel, and not the sources"
    return scripts / "fedistill"


def test_first_run_on_own_texts(program: Path, tmp_path: Path) -> None:
    words = {"sport": "goal match team", "money": "bank market rates", "films": "film star award"}
    rows = [(f"{words[label]} {row} {label}", label) for row in range(100) for label in words]
    Files(tmp_path).csv("texts.csv", text=[text for text, _ in rows], label=[label for _, label in rows])
    assert "wrote texts.toml; next: fedistill doctor texts.toml" in run(
        program, "init", "texts.csv", cwd=tmp_path
    )
    short = ["--set", "rounds=1", "--set", "train.epochs=1", "--set", 'runtime.kind="serial"']
    done = json.loads(run(program, "compare", "texts.toml", *short, "--json", "--out", "run", cwd=tmp_path))
    assert all(arm["status"] == "done" for arm in done["arms"])
    assert done["arms"][0]["rounds"][0]["views"]["server@global"] > 0.9
    assert (tmp_path / "run" / "report.html").is_file()


def test_examples_are_those_of_the_repository(program: Path, tmp_path: Path) -> None:
    shipped = program.parents[1].rglob("fedistill/examples")
    (folder,) = [path for path in shipped if path.is_dir()]
    ours = {
        path.relative_to(ROOT / "examples"): path.read_bytes()
        for path in (ROOT / "examples").glob("**/*.toml")
    }
    theirs = {path.relative_to(folder): path.read_bytes() for path in folder.glob("**/*.toml")}
    assert theirs == {path: content for path, content in ours.items() if path.parts[0] != "flower-digits"}
    run(program, "init", "--example", "methods/voting", cwd=tmp_path)
    assert (tmp_path / "voting.toml").read_bytes() == theirs[Path("methods/voting.toml")]
