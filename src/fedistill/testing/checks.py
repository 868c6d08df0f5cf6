"""What a check is, and how many of them are run as one."""

import importlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedistill.config.plugins import Registry
from fedistill.errors import FedistillError

T = TypeVar("T")

NamedCheck = tuple[str, Callable[[], None]]
"""A rule in a few words, and a function that raises `AssertionError` where it is broken."""


class ContractError(AssertionError):
    """Rules that a class breaks, each with how."""


def require(holds: bool, broken: str) -> None:
    """Raise `AssertionError` with a message unless something holds; `assert` may be switched off."""
    if not holds:
        raise AssertionError(broken)


def run_checks(what: str, checks: Sequence[NamedCheck]) -> list[str]:
    """Run all checks; return the names of those that passed.

    Raises:
        ContractError: lists those that failed.
    """
    failed = []
    for name, check in checks:
        try:
            check()
        except (AssertionError, FedistillError) as error:
            failed.append(f"- {name}: {error}")
        except Exception as error:  # whatever somebody's class raises is told with the rule it came up under
            failed.append(f"- {name}: raised {type(error).__name__}: {error}")
    if failed:
        raise ContractError(
            f"{what} breaks {len(failed)} of {len(checks)} rules of the contract:\n" + "\n".join(failed)
        )
    return [name for name, _ in checks]


def written(wanted: type[T] | str, registry: Registry[T]) -> str:
    """Return the name by which an experiment names a class.

    Raises:
        ContractError: an experiment cannot name it.
    """
    if isinstance(wanted, str):
        return wanted
    name = f"{wanted.__module__}:{wanted.__qualname__}"
    found = getattr(importlib.import_module(wanted.__module__), wanted.__qualname__, None)
    if found is not wanted or wanted.__module__ == "__main__":
        raise ContractError(
            f"{registry.kind} {name}: worker processes import it by name, so define it at the top level of a"
            " module that can be imported"
        )
    return name
