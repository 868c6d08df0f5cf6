"""What is wrong with the declarations of a class that an experiment can name, in words for its author."""

import inspect
from collections.abc import Iterator, Sequence

from fedistill.config.section import Section


def misfits(kind: type, base: type) -> Iterator[str]:
    """Yield the functions of ``base`` that a subclass defines with incompatible arguments."""
    for name, function in vars(base).items():
        if not inspect.isfunction(function) or (name.startswith("__") and name != "__init__"):
            continue
        own = inspect.getattr_static(kind, name)
        if own is function:
            continue
        if not callable(getattr(kind, name)):
            yield f"`{name}` must be a function"
            continue
        expected = [name for name, one in inspect.signature(function).parameters.items() if one.kind <= 1]
        given = inspect.signature(getattr(kind, name))
        bound = isinstance(own, staticmethod | classmethod)
        try:
            given.bind(*expected[1 if bound else 0 :])
        except TypeError:
            yield f"`{name}{given}` must take ({', '.join(expected)})"


def text_faults(kind: type, *names: str) -> Iterator[str]:
    """Yield the class attributes that must be strings and are not."""
    for name in names:
        value = getattr(kind, name, None)
        if not isinstance(value, str) or not value.strip():
            given = f", but is {value!r}" if hasattr(kind, name) else ""
            yield f"`{name}` must be a non-empty string{given}"


def settings_faults(kind: type, taken: Sequence[str], defaults: bool) -> Iterator[str]:
    """Yield what is wrong with the settings that a class declares.

    Args:
        taken: names that a setting cannot have.
        defaults: whether every setting needs a default.
    """
    settings = getattr(kind, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, Section)):
        yield f"`Settings` must be a subclass of Section (fedistill.config.schema), but is {settings!r}"
        return
    yield from field_faults(settings)
    for name, field in settings.model_fields.items():
        if name in taken:
            yield f"the setting `{name}` needs another name: this one is taken"
        if defaults and field.is_required():
            yield f"the setting `{name}` needs a default"


def field_faults(section: type[Section], *silent: str) -> Iterator[str]:
    """Yield the settings without a description, except those in ``silent`` and nested tables."""
    for name, field in section.model_fields.items():
        table = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if name not in silent and not table and not field.description:
            yield f"the setting `{name}` needs a description: Field(description=...)"
