"""Figures formatted for people."""


def format_bytes(count: int) -> str:
    """Return a number of bytes in decimal units with three significant digits, such as ``1.23 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{count} B"
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
