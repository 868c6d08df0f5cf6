"""Figures formatted for people."""

from collections.abc import Sequence


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
