"""The report page: one HTML file that holds its data, its plots and its script, and opens offline.

Python only packs the data. All figures that depend on a control (view, public data, link, target) are
computed in the page, from the numbers of ``results.json``.
"""

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import TypedDict

from plotly.offline import get_plotlyjs

from fedistill.experiment.results import AnyResultsJson

_SLOT = re.compile(r"@@(TITLE|PLOTLY|DATA)@@")

LinkJson = dict[str, str | float | dict[str, str]]
"""A `Link` as plain data, by field."""


class _Data(TypedDict):
    """What the page computes from; `render` says what each is."""

    results: AnyResultsJson
    times: dict[str, dict[str, list[list[float]]]]
    links: dict[str, LinkJson]
    settings: str
    link: str


def render(
    results: AnyResultsJson,
    times: dict[str, dict[str, list[list[float]]]],
    links: dict[str, LinkJson],
    settings: str,
    link: str,
) -> str:
    """Return the whole page, which loads nothing from the network.

    Names in the data (arms, classes, links) may be any text: the page shows them as text.

    Args:
        results: the content of ``results.json``; bytes are integers, accuracies are 0 to 1.
        times: link name -> arm name -> for each of its seeds, simulated seconds from the start to the end of
            each round.
        links: link name -> title, up and down (bits per second), latency (seconds), loss (share),
            compute and server (multiply-adds per second) and sources (field -> text).
        settings: the resolved experiment as TOML.
        link: name of the link that is selected when the page opens.

    Raises:
        KeyError: ``link`` is not one of ``links``.
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    if link not in links:
        raise KeyError(link)
    data: _Data = {"results": results, "times": times, "links": links, "settings": settings, "link": link}
    slots = {
        "TITLE": escape(f"{results['task']['name']} - fedistill report"),
        "PLOTLY": str(get_plotlyjs()),
        "DATA": _json(data),
    }
    template = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    return _fill(template, slots)


def _json(value: _Data) -> str:
    """Return JSON that cannot end or open anything in HTML, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _fill(template: str, slots: Mapping[str, str]) -> str:
    # One pass: a slot's name inside the data or inside plotly.js must stay what it is.
    return _SLOT.sub(lambda match: slots[match[1]], template)
