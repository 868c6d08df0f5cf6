"""How figures are shown."""


def format_bytes(count: int) -> str:
    """Bytes in decimal units, three significant digits."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{count} B"
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
