"""Classes and functions by name: built-in, from installed packages, or any other by ``module:attribute``.

Built-in ones are found by scanning their folders. An installed package announces its own as entry points,
whose names are then available beside the built-in ones. Everything else that Python can import is named by
its module, which is looked up where Python finds packages and, on the command line, in the current folder.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

from fedistill.config.declarations import misfits
from fedistill.errors import ExperimentError, nearest

T = TypeVar("T")


def scan(
    package: str, base: type[T], name_of: Callable[[type[T]], object], first: Sequence[str] = ()
) -> dict[str, type[T]]:
    """Return the concrete, named subclasses of ``base`` that the modules of a package define, by name.

    Modules and packages are in alphabetical order, after those in ``first``; the classes of a module are in
    the order of their definition.

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


@dataclass(frozen=True)
class Reference:
    """A class or function outside fedistill that an experiment names.

    Attributes:
        kind: ``"method"``, ``"codec"``, ``"aggregation"``, ``"model"``, ``"optimizer"`` or ``"loss"``.
        written: as in the experiment: ``module:attribute``, or the name of an entry point.
        module: the module to import.
        source: name and version of the installed package with the entry point, or empty.
    """

    kind: str
    written: str
    module: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.written!r}" + (f" (of {self.source})" if self.source else "")


_asked: ContextVar[Callable[[Reference], None] | None] = ContextVar("asked", default=None)


@contextmanager
def before_import(asked: Callable[[Reference], None]) -> Iterator[None]:
    """Within the context, call ``asked`` with each reference before its module is imported; it may raise."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def ask(reference: Reference) -> None:
    """Let whoever wants to be asked before an import refuse it (`before_import`)."""
    asked = _asked.get()
    if asked is not None:
        asked(reference)


def is_asked() -> bool:
    """Return whether somebody is asked before imports, as where the experiment is another one's."""
    return _asked.get() is not None


_EXAMPLES = {"optimizer": "lion", "loss": "focal"}
"""Names for the examples in messages, by what is wrong."""


def named(kind: str, written: str, form: Literal["Class", "function"]) -> Any:
    """Import the class or function that ``module:attribute`` names.

    Raises:
        ExperimentError: the name is malformed, the module cannot be imported, or it has no such class or
            function.
    """
    module, _, attribute = written.partition(":")
    if not is_module(module):
        example = _EXAMPLES.get(kind, "small" if form == "function" else "Mine")
        plural = kind + ("es" if kind.endswith("s") else "s")
        raise ExperimentError(
            f"{kind} {written!r}: write module:{form} as Python would import them, without a path and"
            f" without .py, for example my_{plural}:{example}"
        )
    return _imported(Reference(kind, written, module), attribute, form)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Report any error of code of the user's own as an `ExperimentError` that begins with these words."""
    try:
        yield
    except Exception as error:  # such code may raise anything
        raise ExperimentError(f"{what} {type(error).__name__}: {error}") from error


def is_module(name: str) -> bool:
    """Whether this could be the name of a module."""
    return all(part.isidentifier() for part in name.split("."))


def _imported(reference: Reference, attribute: str, form: Literal["Class", "function"]) -> Any:
    ask(reference)
    try:
        module = importlib.import_module(reference.module)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ExperimentError(
            f"{reference}: module {reference.module!r} cannot be imported ({type(error).__name__}: {error});"
            " modules are looked up in the current folder and where Python finds packages"
            + _hidden(reference)
        ) from None

    def fits(value: object) -> bool:
        return isinstance(value, type) if form == "Class" else callable(value)

    found = getattr(module, attribute, None)
    if not fits(found):
        guess = nearest(attribute, [key for key, value in vars(module).items() if fits(value)])
        raise ExperimentError(f"{reference}: {module.__name__} has no {form.lower()} {attribute!r}.{guess}")
    return found


def _hidden(reference: Reference) -> str:
    """Return how to fix that an installed package of the same name goes before a folder here, or nothing."""
    name = reference.module.partition(".")[0]
    here, package = Path(name), sys.modules.get(name)
    origin = getattr(package, "__file__", None)
    if origin is None or not here.is_dir() or here.resolve() in Path(origin).resolve().parents:
        return ""
    return (
        f"; the installed package {Path(origin).parent} goes before the folder {name!r} here, which has no"
        " __init__.py: add an empty one, or give the folder another name"
    )


@dataclass(frozen=True)
class Listed(Generic[T]):
    """A name that an experiment may use.

    Attributes:
        kind: the class, or None if it cannot be used.
        source: name and version of the installed package that it is from; empty for built-in ones.
        problem: why it cannot be used, or empty.
    """

    name: str
    kind: type[T] | None
    source: str = ""
    problem: str = ""


class Registry(Generic[T]):
    """All classes of one kind that an experiment can name.

    Attributes:
        own: the built-in ones, by name.
    """

    def __init__(
        self,
        kind: str,
        base: type[T],
        own: Mapping[str, type[T]],
        faults: Callable[[type[T]], list[str]],
        name_of: Callable[[type[T]], object],
    ) -> None:
        """
        Args:
            kind: what messages call such a class; the group of entry points is ``fedistill.KINDs``.
            faults: returns what is wrong with a concrete subclass of ``base``, each in a few words.
            name_of: returns the name that a class declares, if any.
        """
        self.kind, self.own = kind, own
        self._base, self._faults, self._name_of = base, faults, name_of

    def names(self) -> list[str]:
        """Return the built-in names, followed by those of installed packages."""
        return [*self.own, *(name for name in self._points() if name not in self.own)]

    def find(self, written: object) -> type[T]:
        """Return the class that a name or ``module:Class`` stands for.

        Raises:
            ExperimentError: it does not exist or cannot be imported, two packages claim the name, or the
                class has faults.
        """
        if isinstance(written, str) and ":" in written:
            return self._checked(f"{self.kind} {written!r}", named(self.kind, written, "Class"))
        points = self._points().get(written, ()) if isinstance(written, str) else ()
        if len(points) + (written in self.own) > 1:
            raise self._clash(str(written), points)
        if points:
            return self._loaded(points[0])
        if not isinstance(written, str) or written not in self.own:
            names = self.names()
            guess = nearest(str(written), names)
            raise ExperimentError(
                f"{self.kind} {written!r} is not one of {', '.join(names)} or module:Class.{guess}"
            )
        return self.own[written]

    def listing(self) -> list[Listed[T]]:
        """Return all names; those that cannot be used have the reason."""
        found = []
        for name in self.names():
            points = self._points().get(name, ())
            source = ", ".join(_source(point) for point in points)
            try:
                found.append(Listed(name, self.find(name), source))
            except ExperimentError as error:
                found.append(Listed[T](name, None, source, str(error)))
        return found

    def _points(self) -> dict[str, tuple[EntryPoint, ...]]:
        return _entry_points(f"fedistill.{self.kind}s", tuple(sys.path))

    def _clash(self, name: str, points: Sequence[EntryPoint]) -> ExperimentError:
        claims = [(_source(point), point.value.replace(" ", "")) for point in points]
        if name in self.own:
            own = self.own[name]
            claims = [("fedistill", f"{own.__module__}:{own.__qualname__}"), *claims]
        return ExperimentError(
            f"{self.kind} {name!r} is claimed by {' and by '.join(source for source, _ in claims)}: write"
            f" {' or '.join(place for _, place in claims)}, or uninstall one of the packages"
        )

    def _loaded(self, point: EntryPoint) -> type[T]:
        reference = Reference(self.kind, point.name, point.module, _source(point))
        kind = self._checked(str(reference), _imported(reference, point.attr, "Class"))
        if self._name_of(kind) != point.name:
            raise ExperimentError(
                f"{reference}: class {kind.__name__} is named {self._name_of(kind)!r}; the entry point and"
                " `name` must be the same"
            )
        return kind

    def _checked(self, where: str, kind: type) -> type[T]:
        if not issubclass(kind, self._base):
            raise ExperimentError(
                f"{where}: class {kind.__name__} must be a subclass of {self._base.__name__}"
                f" ({self._base.__module__})"
            )
        missing = [name for name in dir(self._base) if name in getattr(kind, "__abstractmethods__", ())]
        missing += sorted(getattr(kind, "__abstractmethods__", frozenset()) - set(missing))
        faults = [f"it lacks {', '.join(missing)}, which every {self.kind} must have"] if missing else []
        faults += [*misfits(kind, self._base), *self._faults(kind)]
        if faults:
            raise ExperimentError(f"{where}: class {kind.__name__} cannot be used: {'; '.join(faults)}")
        return kind


@lru_cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of a group by name, read once for each ``path``, the current `sys.path`."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
