"""What a shell completes besides commands and options: names that are found without importing torch.

Names of methods, codecs, models and data sets are read from the sources, since importing their registries
takes longer than anyone waits for a key. Those of installed packages are left out.
"""

import ast
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import fedistill

if TYPE_CHECKING:
    from pydantic import BaseModel

_SOURCES = Path(str(fedistill.__file__)).parent


def complete_arm(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the arms of the experiment that has been typed."""
    return _beginning(incomplete, _arms(context))


def complete_example(incomplete: str) -> list[str]:
    """Return the names of the shipped examples."""
    from fedistill.experiment.starter.examples import examples

    return _beginning(incomplete, examples())


def complete_view(incomplete: str) -> list[str]:
    """Return the names of the views."""
    return _beginning(incomplete, texts_of("federation/evaluation.py", "VIEWS"))


def complete_setting(context: typer.Context, incomplete: str) -> list[str]:
    """Return the keys that ``--set`` may change, and for some of them their values."""
    key, typed, _ = incomplete.partition("=")
    if typed:
        return _beginning(incomplete, (f"{key}={value}" for value in _values(key)))
    return _beginning(incomplete, _keys(context))


def method_names() -> list[str]:
    """Return the names of the built-in methods, each the name of its file."""
    files = sorted(_SOURCES.glob("methods/*/*.py"))
    own = [path.stem for path in files if path.stem != "__init__" and path.parent.name != "shared"]
    return [name.replace("_", "-") for name in own]


def codec_names() -> list[str]:
    """Return the names of the built-in codecs, as their classes declare them."""
    bodies = [
        node.body
        for path in sorted(_SOURCES.glob("communication/codecs/*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    return [name for body in bodies for name in _assigned(body, "name")]


def model_names() -> list[str]:
    """Return the names of the models on the ladder."""
    return [name for kind in ("image", "text", "table") for name in texts_of(f"models/{kind}.py", "LADDER")]


def task_names() -> list[str]:
    """Return the names of data sets that need no path."""
    return [name for listed in ("EMBEDDED", "HUB_NAMES") for name in texts_of("data/sources.py", listed)]


def texts_of(path: str, variable: str) -> list[str]:
    """Return the texts in a tuple or list, or the keys of a table, that a source file gives a variable."""
    return _assigned(ast.parse((_SOURCES / path).read_text(encoding="utf-8")).body, variable)


def _assigned(body: Iterable[ast.stmt], variable: str) -> list[str]:
    for node in body:
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        if variable in names and node.value is not None:
            return list(_texts(node.value, body))
    return []


def _texts(value: ast.expr, body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the texts in an expression, and those of variables that it names."""
    inside = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [value])
    for item in inside:
        if isinstance(item, ast.Name):
            yield from _assigned(body, item.id)
        elif isinstance(item, ast.Constant) and isinstance(item.value, str):
            yield item.value


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _arms(context: typer.Context) -> list[str]:
    """Return the names of a file's arms, or none if it cannot be read: this is no place for messages."""
    typed = next((argument for argument in context.args if argument.endswith(".toml")), "")
    try:
        raw = tomllib.loads(Path(typed).read_text(encoding="utf-8-sig"))
        return [str(arm.get("name", arm["method"])) for arm in raw["arms"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _keys(context: typer.Context) -> Iterator[str]:
    from fedistill.config.schema import Arm, Experiment

    yield from _keys_in(Experiment, "")
    for arm in _arms(context):
        yield from _keys_in(Arm, f"arms.{arm}.")


def _keys_in(section: "type[BaseModel]", before: str) -> Iterator[str]:
    from pydantic import BaseModel

    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys_in(inner, f"{before}{name}.")
        elif before or name != "arms":
            yield f"{before}{name}="


def _values(key: str) -> list[str]:
    *tables, last = key.split(".")
    if key == "task.name":
        return task_names()
    if tables[-1:] == ["models"]:
        return model_names()
    return {"codec": codec_names, "method": method_names}.get(last, list)()
