"""Figures formatted for people, and read as they write them."""

import re
from collections.abc import Sequence

from fedistill.errors import ExperimentError


def format_bytes(count: int) -> str:
    """Return a number of bytes in decimal units with three significant digits, such as ``1.23 MB``.

    Examples:
        >>> format_bytes(0), format_bytes(999), format_bytes(1_234), format_bytes(73_400_000)
        ('0 B', '999 B', '1.23 kB', '73.4 MB')
    """
    return _in_units(count, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: int) -> str:
    """Return a number in thousands, millions and so on with three significant digits, such as ``1.23 M``.

    Examples:
        >>> format_count(0), format_count(999), format_count(1_234), format_count(73_400_000_000)
        ('0', '999', '1.23 k', '73.4 G')
    """
    return _in_units(count, ("", "k", "M", "G", "T", "P"))


def read_accuracy(text: str) -> float:
    """Return an accuracy, 0 to 1, that is written as a share or, above 1, in percent.

    Raises:
        ExperimentError: it is neither.

    Examples:
        >>> [read_accuracy(text) for text in ("0.95", "0,95", "95", "95 %", "0.5%", "1")]
        [0.95, 0.95, 0.95, 0.95, 0.005, 1.0]
    """
    found = re.fullmatch(r"\s*(\d+(?:[.,]\d*)?|[.,]\d+)\s*(%?)\s*", text)
    value = float(found[1].replace(",", ".")) if found else -1.0
    if found is None or value > 100:
        raise ExperimentError(f"{text!r} is no accuracy: write 0.8, 80 or 80%")
    return value / 100 if found[2] or value > 1 else value


def _in_units(count: int, units: Sequence[str]) -> str:
    """Return a number in the largest that suits of some units, each a thousand times the one before."""
    value = float(count)
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1000
    if unit == units[0]:
        return f"{count} {unit}".rstrip()
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
