"""The table that ends a run: accuracy beside bytes, with and without public data."""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from fedistill.config.units import format_bytes
from fedistill.experiment.results import ArmJson, ResultsJson

VIEWS = ("server@global", "client@global", "client@own")


def last_and_best(arm: ArmJson, view: str) -> tuple[float, float, int] | None:
    """Return the last accuracy of a view, the best one and its round, or None if the arm has no such view."""
    found = [(r["views"][view], r["round"]) for r in arm["rounds"] if view in r["views"]]
    if not found:
        return None
    best = max(found, key=lambda item: (item[0], -item[1]))
    return found[-1][0], best[0], best[1]


def rows(results: ResultsJson) -> list[list[str]]:
    """Return one row of texts per arm, under `headings`."""
    table = []
    on_network = _on_network(results)
    for arm in results["arms"]:
        views = []
        for view in VIEWS:
            found = last_and_best(arm, view)
            views.append("-" if found is None else f"{found[0]:.1%} ({found[1]:.1%} @{found[2]})")
        up = sum(r["bytes_up"] for r in arm["rounds"])
        down = sum(r["bytes_down"] for r in arm["rounds"])
        total = arm["bytes_total"]
        models = ", ".join(dict.fromkeys(arm["client_models"])) or "-"
        table.append(
            [
                arm["name"] if arm["status"] == "done" else f"{arm['name']} [{arm['status']}]",
                f"{models} -> {arm['server_model'] or '-'}",
                *views,
                format_bytes(up),
                format_bytes(down),
                format_bytes(arm["bytes_setup"]),
                format_bytes(arm["bytes_public"]),
                format_bytes(total),
                format_bytes(total + arm["bytes_public"]),
                *([format_bytes(arm["bytes_transport"])] if on_network else []),
            ]
        )
    return table


def headings(results: ResultsJson) -> tuple[str, ...]:
    """Return the names of the columns; only a run on a network has one for transport overhead."""
    return (*_HEADINGS, "transport") if _on_network(results) else _HEADINGS


def _on_network(results: ResultsJson) -> bool:
    return any(arm["bytes_transport"] for arm in results["arms"])


_HEADINGS = (
    "arm",
    "clients -> server",
    *VIEWS,
    "up",
    "down",
    "set-up",
    "public data",
    "total",
    "total + public",
)
_ALWAYS = ("arm", *VIEWS, "up", "down")
_DISPENSABLE = ("clients -> server", "transport", "set-up", "public data", "total + public", "total")
"""What a narrow terminal hides, the first first."""
_NARROW = {"clients -> server": "clients\n-> server", "total + public": "total +\npublic"}
_FOLDED_NAME = 24
"""An arm's name is folded to this many columns before a column is hidden."""


def rich_table(results: ResultsJson, width: int) -> Table:
    """Return the table for a terminal of ``width`` columns.

    What does not fit goes in this order: columns with nothing but zeros, best rounds, models, then those of
    bytes that the sums hold. Accuracies, bytes up and bytes down always stay.
    """
    names, body = headings(results), rows(results)
    empty = [
        place
        for place, name in enumerate(names)
        if name not in _ALWAYS and all(row[place] in ("0 B", "-") for row in body)
    ]
    dispensable = [names.index(name) for name in _DISPENSABLE if name in names]
    hidden: set[int] = set()
    if _width(names, body, hidden, whole=True) <= width:
        return _table(results, hidden, whole=True)
    hidden.update(empty)
    if _width(names, body, hidden, whole=True) <= width:
        return _table(results, hidden, whole=True)
    for place in dispensable:
        if _width(names, body, hidden, whole=False) <= width:
            break
        hidden.add(place)
    return _table(results, hidden, whole=False)


def _width(names: Sequence[str], body: Sequence[Sequence[str]], hidden: set[int], whole: bool) -> int:
    """Return the columns of a terminal that the table takes, with long names of arms folded."""
    total = 1 if whole else 0
    for place, name in enumerate(names):
        if place not in hidden:
            lines = _heading(name, whole).split("\n") + [_cell(row[place], whole) for row in body]
            widest = max(map(cell_len, lines))
            total += min(widest, _FOLDED_NAME) if place == 0 else widest
            total += 3 if whole else 1
    return total


def _heading(name: str, whole: bool) -> str:
    return name if whole else _NARROW.get(name, name.replace("@", "\n@").replace(" ", "\n"))


def _cell(text: str, whole: bool) -> str:
    return text if whole else text.split(" (")[0]


def _table(results: ResultsJson, hidden: set[int], whole: bool) -> Table:
    task = results["task"]
    rounds = max((len(arm["rounds"]) for arm in results["arms"]), default=0)
    caption = (
        f"last round{' (best @round)' if whole else ''}; bytes summed over clients, up and down, all rounds"
    )
    table = Table(
        title=escape(f"{task['name']}, {task['clients']} clients, {task['partition']}, {rounds} rounds"),
        caption=f"{caption}; more in the report" if hidden or not whole else caption,
        box=box.HEAVY_HEAD if whole else box.SIMPLE_HEAD,
        padding=(0, 1) if whole else (0, 1, 0, 0),
        pad_edge=whole,
    )
    names = headings(results)
    shown = [place for place in range(len(names)) if place not in hidden]
    for place in shown:
        table.add_column(
            _heading(names[place], whole),
            justify="left" if place < 2 else "right",
            overflow="fold",
            no_wrap=place > 0,  # else a number may be broken
        )
    for row in rows(results):
        name, *others = (row[place] for place in shown)
        table.add_row(escape(name), *(escape(_cell(cell, whole)) for cell in others))
    return table


def reached(arm: ArmJson, view: str, accuracy: float) -> tuple[int, int] | None:
    """Return the bytes until a view first reached an accuracy, and the round; None if it never did.

    Set-up is included, public data is not.
    """
    sent = arm["bytes_setup"]
    for entry in arm["rounds"]:
        sent += entry["bytes_up"] + entry["bytes_down"]
        if entry["views"].get(view, -1.0) >= accuracy:
            return sent, entry["round"]
    return None


def reach_markdown(results: ResultsJson, view: str, accuracies: Sequence[float]) -> str:
    """Return the bytes that an arm needs to reach accuracies in a view; with public data after the slash."""
    lines = [
        f"| arm | codec | {' | '.join(f'{view} {accuracy:.0%}' for accuracy in accuracies)} |",
        f"|---|---|{'|'.join('---:' for _ in accuracies)}|",
    ]
    for arm in results["arms"]:
        if not any(view in entry["views"] for entry in arm["rounds"]):
            continue
        cells = []
        for accuracy in accuracies:
            found = reached(arm, view, accuracy)
            if found is None:
                cells.append("-")
                continue
            sent, number = found
            public = arm["bytes_public"]
            cells.append(
                f"{format_bytes(sent)}{f' / {format_bytes(sent + public)}' if public else ''} @{number}"
            )
        names = (arm["name"].replace("|", r"\|"), arm["codec"])
        lines.append(f"| {' | '.join([*names, *cells])} |")
    return "\n".join(lines)


def markdown(results: ResultsJson) -> str:
    """Return the table as Markdown."""
    names = headings(results)
    lines = [
        f"| {' | '.join(names)} |",
        f"|{'|'.join('---' if place < 2 else '---:' for place in range(len(names)))}|",
    ]
    for row in rows(results):
        cells = [cell.replace("|", r"\|") for cell in row]  # a bar in a name would start a new cell
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
