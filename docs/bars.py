"""Draws bars as an SVG file, for pages that `docs/generate.py` makes."""

import html
from collections.abc import Mapping, Sequence

from curves import COLOURS

WIDTH, LEFT, RIGHT, TOP = 760, 250, 70, 30
BAR, GAP = 14, 10
Groups = Mapping[str, Mapping[str, float]]
"""Of each group of bars, a value by bar."""


def draw(title: str, groups: Groups, names: Sequence[str], most: float) -> str:
    """Return an SVG image of horizontal bars, in groups, from 0 to ``most``, with a line at 1.

    Args:
        names: of all bars, each with a colour of its own.
        most: longer bars are cut off there, and say their value all the same.
    """
    height = TOP + sum(len(group) * BAR + GAP for group in groups.values()) + GAP

    def x(value: float) -> float:
        return LEFT + min(value, most) / most * (WIDTH - LEFT - RIGHT)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' font-family="sans-serif" font-size="11">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="16" text-anchor="middle" font-size="12">{html.escape(title)}</text>',
    ]
    top = float(TOP)
    for group, bars in groups.items():
        for name, value in bars.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            label, length = html.escape(f"{group}, {name}"), x(value) - LEFT
            shape = f'y="{top:.0f}" width="{length:.1f}" height="{BAR - 3}" fill="{colour}"'
            lines += [
                f'<text x="{LEFT - 6}" y="{top + 10:.0f}" text-anchor="end">{label}</text>',
                f'<rect x="{LEFT}" {shape}/>',
                f'<text x="{x(value) + 4:.1f}" y="{top + 10:.0f}">{value:.2f}</text>',
            ]
            top += BAR
        top += GAP
    lines.append(
        f'<path d="M{x(1):.1f} {TOP - 4}L{x(1):.1f} {height - GAP}" stroke="#333333" stroke-dasharray="4 3"/>'
    )
    return "\n".join([*lines, "</svg>"]) + "\n"
