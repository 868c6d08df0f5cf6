"""Draws accuracy against bytes as an SVG file, for pages that `docs/generate.py` makes."""

import html
import math
from collections.abc import Mapping, Sequence

from fedistill.config.units import format_bytes

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 780, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 200, 16, 44
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")
"""Told apart by people who see fewer colours (Okabe and Ito)."""


def draw(curves: Mapping[str, Points], lowest: float) -> str:
    """Return an SVG image of curves, each with points (bytes, accuracy), from the lowest accuracy on up.

    Bytes are on a logarithmic axis; a curve of one point is a circle. Each curve has a colour of its own.
    """
    shown = {
        name: [(sent, accuracy) for sent, accuracy in points if accuracy >= lowest]
        for name, points in curves.items()
    }
    every = [point for points in shown.values() for point in points]
    left, right = (math.log10(end(sent for sent, _ in every)) for end in (min, max))
    left, right = left - 0.05, right + 0.05
    highest = math.ceil(max(accuracy for _, accuracy in every) * 50) / 50

    def x(sent: float) -> float:
        return LEFT + (math.log10(sent) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(accuracy: float) -> float:
        return TOP + (highest - accuracy) / (highest - lowest) * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' font-family="sans-serif" font-size="12">',
        f"<title>Accuracy against bytes: {html.escape(', '.join(curves))}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for step in range(round((highest - lowest) * 50) + 1):
        accuracy = lowest + step / 50
        lines.append(_line(LEFT, y(accuracy), WIDTH - RIGHT, y(accuracy)))
        lines.append(_text(LEFT - 6, y(accuracy) + 4, f"{accuracy:.0%}", "end"))
    for exponent in range(math.floor(left), math.ceil(right) + 1):
        for digit in (1, 2, 5):
            sent = digit * 10.0**exponent
            if left <= math.log10(sent) <= right:
                lines.append(_line(x(sent), TOP, x(sent), HEIGHT - BOTTOM))
                lines.append(_text(x(sent), HEIGHT - BOTTOM + 16, format_bytes(int(sent)), "middle"))
    lines.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "bytes of all clients, both ways", "middle"))
    for place, (colour, (name, points)) in enumerate(zip(COLOURS[: len(shown)], shown.items(), strict=True)):
        path = " ".join(f"{x(sent):.1f},{y(accuracy):.1f}" for sent, accuracy in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [
            f'<circle cx="{x(sent):.1f}" cy="{y(accuracy):.1f}" r="3" fill="{colour}"/>'
            for sent, accuracy in points
        ]
        at = TOP + 14 + 20 * place
        lines.append(f'<circle cx="{WIDTH - RIGHT + 20}" cy="{at - 4}" r="5" fill="{colour}"/>')
        lines.append(_text(WIDTH - RIGHT + 32, at, name, "start"))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _line(left: float, top: float, right: float, bottom: float) -> str:
    return f'<path d="M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
