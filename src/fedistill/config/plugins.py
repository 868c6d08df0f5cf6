"""Classes by name: found by scanning the folders they lie in, so that nothing has to be registered."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def scan(
    package: str, base: type[T], name_of: Callable[[type[T]], object], first: Sequence[str] = ()
) -> dict[str, type[T]]:
    """Return the concrete, named subclasses of ``base`` that the modules of a package define, by name.

    Modules and packages come in alphabetical order, but for those in ``first``, which come before the others;
    the classes of one module come in the order of its text.

    Raises:
        TypeError: two classes have the same name.
    """
    found: dict[str, type[T]] = {}
    for module in _modules(package, first):
        for kind in vars(module).values():
            if not (isinstance(kind, type) and kind.__module__ == module.__name__ and issubclass(kind, base)):
                continue
            name = None if inspect.isabstract(kind) else name_of(kind)
            if not isinstance(name, str):
                continue
            if name in found:
                raise TypeError(f"{_path(found[name])} and {_path(kind)} are both named {name!r}")
            found[name] = kind
    return found


def _modules(package: str, first: Sequence[str] = ()) -> Iterator[ModuleType]:
    names = sorted(info.name for info in pkgutil.iter_modules(importlib.import_module(package).__path__))
    for name in [*(name for name in first if name in names), *(name for name in names if name not in first)]:
        module = importlib.import_module(f"{package}.{name}")
        yield module
        if hasattr(module, "__path__"):
            yield from _modules(module.__name__)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
