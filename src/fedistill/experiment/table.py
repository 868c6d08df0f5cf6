"""The table that ends a run: accuracy beside bytes, with and without public data."""

from collections.abc import Sequence

from rich import box
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
_LEFT_OUT = ("clients -> server", "up", "down", "transport")
_WHOLE_TABLE = 160
"""Width of the full table with the names of the examples."""


def rich_table(results: ResultsJson, width: int) -> Table:
    """Return the table for a terminal; a narrow one leaves out models, best rounds and bytes by direction."""
    task = results["task"]
    rounds = max((len(arm["rounds"]) for arm in results["arms"]), default=0)
    whole = width >= _WHOLE_TABLE
    table = Table(
        title=escape(f"{task['name']}, {task['clients']} clients, {task['partition']}, {rounds} rounds"),
        caption="last round (best @round); bytes summed over clients, up and down, all rounds"
        if whole
        else "last round; bytes summed over clients, up and down, all rounds; more in the report",
        box=box.HEAVY_HEAD if whole else box.SIMPLE_HEAD,
        padding=(0, 1) if whole else (0, 1, 0, 0),
    )
    names = headings(results)
    shown = [place for place, heading in enumerate(names) if whole or heading not in _LEFT_OUT]
    for place in shown:
        heading = names[place] if whole else names[place].replace("@", "\n@").replace(" ", "\n")
        table.add_column(heading, justify="left" if place < 2 else "right", overflow="fold")
    for row in rows(results):
        cells = [row[place] if whole else row[place].split(" (")[0] for place in shown]
        table.add_row(*map(escape, cells))
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
