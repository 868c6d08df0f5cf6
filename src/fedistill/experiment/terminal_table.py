"""The table on a terminal, as wide as that is: what matters least goes first."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from fedistill.experiment.measure import ACCURACY, Measure
from fedistill.experiment.results import AnyResultsJson, of_seeds
from fedistill.experiment.table import EPSILON, WORK, headings, listed, rows
from fedistill.federation.evaluation import VIEWS

_ALWAYS = ("arm", *VIEWS, EPSILON, "up", "down")
_DISPENSABLE = (
    "clients -> server",
    "transport",
    "evaluation",
    "memory",
    "multiply-adds",
    "set-up",
    "public data",
    "total + public",
    "total",
)
"""What a narrow terminal hides, the first first."""
_NARROW = {
    "clients -> server": "clients\n-> server",
    "total + public": "total +\npublic",
    "multiply-adds": "multiply-\nadds",
}
_FOLDED_NAME = 14
"""An arm's name is folded to this many columns before a column is hidden."""


def rich_table(results: AnyResultsJson, width: int, measure: Measure = ACCURACY) -> Table:
    """Return the table for a terminal of ``width`` columns.

    What does not fit goes in this order: columns with nothing but zeros, clients' work, best rounds and
    deviations of bytes, models, then those of bytes that the sums hold. Accuracies, bytes up and bytes down
    always stay.
    """
    names, body = headings(results), rows(results, measure)
    empty = [
        place
        for place, name in enumerate(names)
        if name not in _ALWAYS and all(row[place] in ("0 B", "-") for row in body)
    ]
    dispensable = [names.index(name) for name in _DISPENSABLE if name in names]
    hidden: set[int] = set()
    if _width(names, body, hidden, whole=True) <= width:
        return _table(results, measure, hidden, whole=True)
    hidden.update(empty)
    work = {place for place, name in enumerate(names) if name in WORK}
    for less in (hidden, hidden | work):
        if _width(names, body, less, whole=True) <= width:
            return _table(results, measure, less, whole=True)
    for place in dispensable:
        if _width(names, body, hidden, whole=False) <= width:
            break
        hidden.add(place)
    return _table(results, measure, hidden, whole=False)


def _width(names: Sequence[str], body: Sequence[Sequence[str]], hidden: set[int], whole: bool) -> int:
    """Return the columns of a terminal that the table takes, with long names of arms folded."""
    total = 1 if whole else 0
    for place, name in enumerate(names):
        if place not in hidden:
            lines = _heading(name, whole).split("\n") + [_cell(name, row[place], whole) for row in body]
            widest = max(map(cell_len, lines))
            total += min(widest, _FOLDED_NAME) if place == 0 else widest
            total += 3 if whole else 2
    return total


def _heading(name: str, whole: bool) -> str:
    return name if whole else _NARROW.get(name, name.replace("@", "\n@").replace(" ", "\n"))


def _cell(name: str, text: str, whole: bool) -> str:
    if whole:
        return text
    last = text.split(" (")[0]
    return last if name == "arm" or name in VIEWS else last.split(" ± ")[0]


def _table(results: AnyResultsJson, measure: Measure, hidden: set[int], whole: bool) -> Table:
    task = results["task"]
    rounds = max((len(one["rounds"]) for arm in results["arms"] for one in of_seeds(arm)), default=0)
    what = task.get("title", f"{task['name']}, {task['clients']} clients, {task['partition']}")
    title = f"{what}, {rounds} rounds"
    if measure != ACCURACY:
        title = f"{measure.name}: {title}"
    names = headings(results)
    shown = [place for place in range(len(names)) if place not in hidden]
    caption = "bytes summed over clients, up and down, all rounds"
    if any(names[place] in WORK for place in shown):
        caption += "; multiply-adds and memory of a client"
    if "seeds" in results:
        title += f", seeds {listed(results['seeds'])}"
        last = f"last round{' (best round)' if whole else ''}"
        caption = f"mean ± standard deviation over seeds; {last}; {caption}"
    else:
        caption = f"last round{' (best @round)' if whole else ''}; {caption}"
    table = Table(
        title=escape(title),
        caption=f"{caption}; more in the report" if hidden or not whole else caption,
        box=box.HEAVY_HEAD if whole else box.SIMPLE_HEAD,
        padding=(0, 1) if whole else (0, 1, 0, 0),
        pad_edge=whole,
    )
    for place in shown:
        table.add_column(
            _heading(names[place], whole),
            justify="left" if place < 2 else "right",
            overflow="fold",
            no_wrap=place > 0,  # else a number may be broken
        )
    for row in rows(results, measure):
        cells = [_cell(names[place], row[place], whole or place == 0) for place in shown]
        table.add_row(*map(escape, cells))
    return table
