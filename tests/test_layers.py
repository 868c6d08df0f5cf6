"""What may import what, read from the sources."""

import ast
import importlib.util
from pathlib import Path

import pytest

import fedistill
from fedistill.methods import METHODS

ROOT = Path(fedistill.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = ["fedistill", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """All modules that a file imports, anywhere in it; `from a import b` is `a` and, if a module, `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            if node.module.split(".")[0] == "fedistill":
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {name for name in inner if is_module(name)}
    return found


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split(".")[1:])
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def files(package: str) -> list[Path]:
    found = [path for path in SOURCES if within(name_of(path), f"fedistill.{package}")]
    assert found
    return found


def offenders(package: str, *forbidden: str) -> list[str]:
    return [
        f"{name_of(path)} imports {name}"
        for path in files(package)
        for name in sorted(imports(path))
        if any(within(name, one) for one in forbidden)
    ]


def test_the_reader_of_imports_sees_them() -> None:
    """Else the tests below would pass for nothing."""
    found = imports(ROOT / "doctor.py")
    assert {"torch", "fedistill.models", "fedistill.report.table"} <= found
    assert "fedistill.runtime.inprocess" in found  # inside a function
    assert name_of(ROOT / "wire" / "__init__.py") == "fedistill.wire"


@pytest.mark.parametrize("package", ["methods", "wire"])
def test_methods_and_wire_do_not_know_where_they_run(package: str) -> None:
    assert offenders(package, "fedistill.runtime", "flwr", "multiprocessing", "fedistill.site") == []


def test_wire_knows_nothing_of_the_rest() -> None:
    below = ("errors", "wire", "config", "state", "rng", "explain")
    allowed = tuple(f"fedistill.{name}" for name in below)
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in files("wire")
        for name in imports(path)
        if within(name, "fedistill") and name != "fedistill" and not any(within(name, one) for one in allowed)
    ]
    assert wrong == []


def test_tasks_and_models_do_not_know_methods() -> None:
    above = [f"fedistill.{name}" for name in ("methods", "runtime", "round", "arm", "report", "experiment")]
    assert offenders("tasks", *above) == []
    assert offenders("models", *above, "fedistill.tasks") == []


def test_methods_do_not_know_the_command_line_or_reports() -> None:
    assert (
        offenders("methods", "fedistill.report", "fedistill.cli", "fedistill.experiment", "fedistill.round")
        == []
    )


@pytest.mark.parametrize("path", SOURCES, ids=map(name_of, SOURCES))
def test_no_pickle(path: Path) -> None:
    """What crosses and what is saved has one serializer; `torch.load` and `torch.save` are pickle too."""
    picklers = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
    assert not [name for name in imports(path) for one in picklers if within(name, one)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.load", "torch.save", "np.load", "eval", "exec"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_short_file_with_a_full_docstring(name: str) -> None:
    method = METHODS[name]
    spec = importlib.util.find_spec(method.__module__)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin)
    assert path.parent == ROOT / "methods"
    assert path.stem == name.replace("-", "_")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
    assert method.__doc__ is not None
    assert "xchanged" in method.__doc__
    assert "ytes" in method.__doc__
    assert not method.__subclasses__(), "classes are abstract or final"


def test_every_file_in_methods_is_a_method_or_shared() -> None:
    shared = {
        "__init__",
        "abstaining",
        "base",
        "class_outputs",
        "mutual",
        "own_model",
        "private_loss",
        "prototypes",
        "public_labels",
        "weights",
    }
    found = {path.stem for path in files("methods")} - shared
    assert found == {name.replace("-", "_") for name in METHODS}


@pytest.mark.parametrize("path", SOURCES, ids=map(name_of, SOURCES))
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
