"""Figures formatted for people."""


def format_bytes(count: int) -> str:
    """Return a number of bytes in decimal units with three significant digits, such as ``1.23 MB``.

    Examples:
        >>> format_bytes(0), format_bytes(999), format_bytes(1_234), format_bytes(73_400_000)
        ('0 B', '999 B', '1.23 kB', '73.4 MB')
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{count} B"
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
