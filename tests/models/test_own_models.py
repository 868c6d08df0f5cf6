"""One's own models by ``module:function``: found where the user is, and refused with what is wrong."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedistill.errors import ExperimentError
from fedistill.models import registry as models
from fedistill.models.checks import check_model
from fedistill.models.signature import Signature

IMAGE = Signature("image", (1, 4, 4), 3, 0)
TEXT = Signature("text", (6,), 3, 20)

CODE = """
from torch import nn

def small(signature):
    inputs = 1
    for side in signature.shape:
        inputs *= side
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, signature.classes))

def wide(signature):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 7))

def deaf(signature):
    return nn.Linear(99, signature.classes)

def pair(signature):
    class Pair(nn.Linear):
        def forward(self, inputs):
            return inputs, inputs
    return Pair(1, 1)

def nothing(signature):
    return None

def table(signature):
    return {"layers": 3}

def fails(signature):
    raise RuntimeError("no such depth")

def no_arguments():
    return nn.Identity()

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_models.py").write_text(CODE)
    (tmp_path / "my_broken.py").write_text("def small(:\n")
    (tmp_path / "my_raising.py").write_text("raise KeyError('depth')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_models"
    for name in ("my_models", "my_broken", "my_raising"):
        sys.modules.pop(name, None)


def refusal(name: str, signature: Signature = IMAGE) -> str:
    with pytest.raises(ExperimentError) as caught:
        check_model(name, signature)
    return str(caught.value)


def test_it_is_built_like_those_of_the_ladder(module: str) -> None:
    model = check_model(f"{module}:small", IMAGE)
    assert model(torch.zeros(5, 1, 4, 4)).shape == (5, 3)
    first, again, other = (
        models.build_model(f"{module}:small", IMAGE, seed, client=1).get_parameter("1.weight")
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("smal", "model 'my_models:smal': my_models has no function 'smal'. Did you mean 'small'?"),
        ("constant", "model 'my_models:constant': my_models has no function 'constant'."),
        ("", "model 'my_models:': my_models has no function ''."),
        (
            "wide",
            "model 'my_models:wide' returns (2, 7) for 2 samples, but the task has 3 classes: it must return"
            " (2, 3)",
        ),
        (
            "pair",
            "model 'my_models:pair' returns tuple for 2 samples, but the task has 3 classes: it must return"
            " (2, 3)",
        ),
        ("nothing", "model 'my_models:nothing': nothing must return an nn.Module, not a NoneType"),
        ("table", "model 'my_models:table': table must return an nn.Module, not a dict"),
        (
            "fails",
            "model 'my_models:fails': fails(Signature(kind='image', shape=(1, 4, 4), classes=3,"
            " vocabulary=0)) raised RuntimeError: no such depth",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said(module: str, function: str, said: str) -> None:
    assert refusal(f"{module}:{function}").startswith(said)


def test_errors_of_the_model_itself_are_shown_with_its_name(module: str) -> None:
    assert refusal(f"{module}:deaf").startswith(
        "model 'my_models:deaf' fails on an input of shape (2, 1, 4, 4): RuntimeError: "
    )
    # A model for images on a task of texts.
    assert refusal(f"{module}:small", TEXT).startswith(
        "model 'my_models:small' fails on an input of shape (2, 6): RuntimeError: "
    )
    said = refusal(f"{module}:no_arguments")
    assert "raised TypeError" in said
    assert "no_arguments() takes 0 positional arguments" in said


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("my_missing:small", "ModuleNotFoundError: No module named 'my_missing'"),
        ("my_broken:small", "SyntaxError: invalid syntax"),
        ("my_raising:small", "KeyError: 'depth'"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why_and_where_it_was_sought(name: str, cause: str) -> None:
    said = refusal(name)
    assert said.startswith(f"model {name!r}: module {name.partition(':')[0]!r} cannot be imported ({cause}")
    assert said.endswith("; modules are looked up in the current folder and where Python finds packages")


@pytest.mark.parametrize(
    "name", ["my_models.py:small/", "./my_models:small", "models/a.py:small", ":small", ".a:b"]
)
def test_a_path_in_place_of_a_module_is_refused(name: str) -> None:
    if name == "my_models.py:small/":
        # As far as Python can tell, this is a module in a package.
        assert "No module named 'my_models'" in refusal(name)
    else:
        assert refusal(name) == (
            f"model {name!r}: write module:function as Python would import them, without a path and without"
            " .py, for example my_models:small"
        )


EXPERIMENT = """
rounds = 1
[task]
name = "digits"
[models]
clients = ["MODEL"]
server = "MODEL"
[[arms]]
method = "fedavg"
"""


@pytest.mark.parametrize(("function", "status"), [("small", 0), ("nothing", 2)])
def test_the_command_finds_it_in_the_current_folder(tmp_path: Path, function: str, status: int) -> None:
    (tmp_path / "my_models.py").write_text(CODE)
    (tmp_path / "exp.toml").write_text(EXPERIMENT.replace("MODEL", f"my_models:{function}"))
    command = [
        sys.executable,
        "-P",
        "-c",
        "from fedistill.cli.main import main; main()",
        "doctor",
        "exp.toml",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if status:
        assert "my_models:nothing': nothing must return an nn.Module" in done.stderr


def test_a_folder_that_an_installed_package_hides_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site" / "ours" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    own = tmp_path / "here" / "ours" / "nets.py"
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.chdir(tmp_path / "here")
    # Python takes a package that is found later before a folder that is none, and is found first.
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "here")
    monkeypatch.delitem(sys.modules, "ours", raising=False)
    assert refusal("ours.nets:small").endswith(
        f"; the installed package {installed.parent} goes before the folder 'ours' here, which has no"
        " __init__.py: add an empty one, or give the folder another name"
    )
    monkeypatch.delitem(sys.modules, "ours")
