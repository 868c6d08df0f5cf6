"""What may import what, read from the sources: rooms stand on one another in one order."""

import ast
import importlib.util
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fedistill
from fedistill.methods.registry import METHODS

ROOT = Path(fedistill.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

ROOMS = [
    "cli",
    "testing",
    "tracking",
    "studies",
    "flower",
    "experiment",
    "federation",
    "attacks",
    "methods",
    "deployment",
    "data",
    "models",
    "privacy",
    "training",
    "aggregation",
    "communication/secure_aggregation",
    "communication/protocol",
    "communication/codecs",
    "communication/messages",
    "communication/entropy_coding",
    "communication",
    "config",
    "",
]
"""From top to bottom: a room uses those below it and none above. The last is the files beside the folders."""

STUBS = {"fedistill.runtime.flower.client", "fedistill.runtime.flower.server"}
"""The only exceptions: Flower apps of earlier versions import them."""

DOORS = {"fedistill", "fedistill.__main__"}
"""Of the package itself: what `import fedistill` offers, and what `python -m fedistill` runs."""


def name_of(path: Path) -> str:
    parts = ["fedistill", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


@cache
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
            found |= {name for alias in node.names if (name := f"{node.module}.{alias.name}") in MODULES}
    return found


def room(module: str) -> str:
    """The room of a module: its folder, and within `communication` the folder in it."""
    place = MODULES[module].relative_to(ROOT).parent.parts
    return "/".join(place[: 2 if place[:1] == ("communication",) else 1])


@cache
def arrows() -> dict[str, set[str]]:
    """From each room to those that it uses, not counting the package's own front doors."""
    found: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module, path in MODULES.items():
        if module in DOORS or module.startswith("fedistill.runtime"):
            continue
        used = {room(name) for name in imports(path) if name in MODULES and name != "fedistill"}
        found[room(module)] |= used - {room(module)}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def offenders(package: str, *forbidden: str) -> list[str]:
    found = [module for module in MODULES if within(module, f"fedistill.{package}")]
    assert found
    return [
        f"{module} imports {name}"
        for module in found
        for name in sorted(imports(MODULES[module]))
        if any(within(name, one) for one in forbidden)
    ]


def test_the_reader_of_imports_sees_them() -> None:
    """Else the tests below would pass for nothing."""
    found = imports(ROOT / "experiment" / "preflight.py")
    assert {"torch.nn.modules.batchnorm", "fedistill.models.registry", "fedistill.config.units"} <= found
    assert "fedistill.experiment.runner" in imports(ROOT / "cli" / "main.py")  # inside functions
    assert room("fedistill.communication.codecs") == "communication/codecs"
    assert room("fedistill.methods.labels.dsfl") == "methods"


def test_the_rooms_are_the_folders() -> None:
    assert {room(module) for module in MODULES} == {*ROOMS, "runtime"}
    assert {module for module in MODULES if within(module, "fedistill.runtime")} == {
        *STUBS,
        "fedistill.runtime",
        "fedistill.runtime.flower",
    }


@pytest.mark.parametrize("place", range(len(ROOMS)), ids=[name or "files" for name in ROOMS])
def test_a_room_uses_those_below_it_alone(place: int) -> None:
    assert sorted(arrows()[ROOMS[place]] - set(ROOMS[place + 1 :])) == []


@pytest.mark.parametrize("stub", sorted(STUBS))
def test_stubs_hand_on_to_the_room_that_took_their_place(stub: str) -> None:
    used = {name for name in imports(MODULES[stub]) if within(name, "fedistill")}
    assert {room(name) for name in used} == {"flower"}
    assert not [name for name in MODULES if name not in STUBS and stub in imports(MODULES[name])]


def test_no_two_files_use_each_other() -> None:
    """Over any number of steps; `fedistill` itself, which all stand in, is left out."""
    graph = {
        module: {name for name in imports(path) if name in MODULES} - {"fedistill", module}
        for module, path in MODULES.items()
        if module != "fedistill"
    }
    TopologicalSorter(graph).prepare()


def test_the_arrows_reach_no_room_from_below() -> None:
    """The same over indirect imports: what a room reaches in any number of steps lies below it."""
    direct = arrows()
    for place, name in enumerate(ROOMS):
        reached: set[str] = set()
        ahead = [name]
        while ahead:
            new = direct[ahead.pop()] - reached
            reached |= new
            ahead += new
        assert reached <= set(ROOMS[place + 1 :]), name


def test_methods_and_messages_do_not_know_where_they_run() -> None:
    for package in ("methods", "communication"):
        assert offenders(package, "flwr", "multiprocessing") == []


def test_flower_is_used_in_its_own_room_alone() -> None:
    for module, path in MODULES.items():
        if not within(module, "fedistill.flower"):
            users = {name for name in imports(path) if within(name, "flwr")}
            assert not users or (module == "fedistill.cli.flower" and users == {"flwr"})


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
    assert path.parent.parent == ROOT / "methods"
    assert path.stem == name.replace("-", "_")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 200
    assert method.__doc__ is not None
    assert "xchanged" in method.__doc__
    assert "ytes" in method.__doc__
    above = [one for one in METHODS.values() if one is not method and issubclass(one, method)]
    assert not above, "classes are abstract or final"


def test_every_file_in_a_family_of_methods_is_a_method() -> None:
    found = {
        path.stem
        for path in (ROOT / "methods").glob("*/*.py")
        if path.stem != "__init__" and path.parent.name != "shared"
    }
    assert found == {name.replace("-", "_") for name in METHODS}


@pytest.mark.parametrize("path", SOURCES, ids=map(name_of, SOURCES))
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def objects_in(tree: ast.AST) -> int:
    """How often `object` stands in it, but for the methods that Python itself defines with it."""
    if isinstance(tree, ast.FunctionDef) and re.fullmatch(r"__\w+__", tree.name):
        return 0
    own = isinstance(tree, ast.Name) and tree.id == "object"
    return own + sum(map(objects_in, ast.iter_child_nodes(tree)))


def test_the_counter_of_objects_sees_them() -> None:
    """Else the test below would pass for nothing."""
    source = "def f(a: list[object], b: dict[str, object]) -> object: x: object = a"
    assert objects_in(ast.parse(source)) == 4
    assert objects_in(ast.parse("class A:\n    def __eq__(self, other: object) -> bool: ...")) == 0


def test_types_say_what_is_true() -> None:
    """Few lines have `Any`: what has no type of its own has one name; and `object` is not its stand-in."""
    lines = [line for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines()]
    assert (
        sum(1 for line in lines if re.search(r"\bAny\b", line) and not re.match("(from|import) ", line)) < 40
    )
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    found = {name for name, source in sources.items() if objects_in(ast.parse(source))}
    # What is looked up by name may be anything, and so may the name that a class declares, and what a custom
    # model returns or keeps.
    rooms = ("aggregation", "communication.codecs", "methods", "models")
    others = {"fedistill.config.plugins", "fedistill.models.reuse"}
    assert found <= {*others, *(f"fedistill.{name}.registry" for name in rooms)}


def test_no_test_file_is_imported() -> None:
    """What several tests need is in a module of helpers."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    found = {path.name: [name for name in imports(path) if name.startswith("test_")] for path in files}
    assert {name: names for name, names in found.items() if names} == {}
