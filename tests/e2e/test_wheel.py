"""What is in the wheel: installed beside the libraries that the tests have, and used in an empty folder.

With ``FEDISTILL_PROGRAM``, the command of another environment is tried: `.ci/wheel-check` has an empty one.
"""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Callable
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
    if given := os.environ.get("FEDISTILL_PROGRAM"):
        return Path(given)
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


def texts(files: Files) -> str:
    words = {"sport": "goal match team", "money": "bank market rates", "films": "film star award"}
    rows = [(f"{words[label]} {row} {label}", label, row % 3) for row in range(100) for label in words]
    columns = dict(zip(("text", "label", "hospital"), zip(*rows, strict=True), strict=True))
    return files.csv("mine.csv", **columns)


def images(files: Files) -> str:
    """Dark and bright noise, in a folder for each site."""
    for place in range(3):
        noise = files.pixels(60, seed=place)
        files.tree(
            f"mine/site-{place}", dark=[one // 4 for one in noise], bright=[192 + one // 4 for one in noise]
        )
    return "mine"


def table(files: Files) -> str:
    ages = [20 + 7 * row % 60 for row in range(300)]
    return files.csv(
        "mine.csv",
        age=ages,
        smoker=["yes" if row % 4 == 0 else "no" for row in range(300)],
        outcome=["ill" if age > 50 else "well" for age in ages],
        hospital=[("north", "south", "west")[row % 3] for row in range(300)],
    )


@pytest.mark.parametrize(
    ("data", "arm"),
    [
        pytest.param(texts, "naive-bayes", marks=pytest.mark.long),
        pytest.param(images, "fedavg", marks=pytest.mark.long),
        pytest.param(table, "fedavg", marks=pytest.mark.long),
    ],
    ids=["texts", "images", "table"],
)
def test_first_run_on_own_data_of_several_sites(
    program: Path, tmp_path: Path, data: Callable[[Files], str], arm: str
) -> None:
    """By the commands of README's section on one's own data."""
    path = Path(data(Files(tmp_path)))
    found = json.loads(run(program, "init", path.name, "--json", cwd=tmp_path))
    assert len(found["sites"]) == 3
    assert min(found["sites"].values()) > 90
    checked = run(program, "doctor", "mine.toml", cwd=tmp_path)
    assert arm in checked
    short = ["--set", "rounds=3", "--set", 'runtime.kind="serial"']
    command = ("run", "mine.toml", "--arm", arm, *short, "--json", "--out", "run")
    done = json.loads(run(program, *command, cwd=tmp_path))
    (played,) = done["arms"]
    assert played["status"] == "done"
    assert played["rounds"][-1]["views"]["server@global"] > 0.8
    assert len(done["task"]["client_names"]) == 3
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
