"""The table that ends a run: accuracy beside bytes, with and without public data, and beside clients' work.

With several seeds, accuracies, bytes and work are means ± sample standard deviations (n - 1) over the seeds
that are done, and bytes to reach an accuracy are medians with their ranges.
"""

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from fedistill.config.units import format_bytes, format_count
from fedistill.experiment.measure import ACCURACY, Measure
from fedistill.experiment.results import AnyArmJson, AnyResultsJson, SeedJson, counted, of_seeds
from fedistill.experiment.spread import MedianAndRange, Spread
from fedistill.federation.evaluation import SERVER_OWN, VIEWS


def last_and_best(arm: SeedJson, view: str, measure: Measure = ACCURACY) -> tuple[float, float, int] | None:
    """Return the last value of a view, the best one and its round, or None if the arm has no such view."""
    values = [(measure.value(entry, view), entry["round"]) for entry in arm["rounds"]]
    found = [(value, number) for value, number in values if value is not None]
    if not found:
        return None
    best = min(found, key=lambda item: (measure.cost(item[0]), item[1]))
    return found[-1][0], best[0], best[1]


def rows(results: AnyResultsJson, measure: Measure = ACCURACY) -> list[list[str]]:
    """Return one row of texts per arm, under `headings`."""
    table = []
    on_network, counts_work = _on_network(results), _counts_work(results)
    evaluated_at_sites = _evaluated_at_sites(results)
    for arm in results["arms"]:
        seeds = counted(arm)
        public = [one["bytes_public"] for one in seeds]
        total = [one["bytes_total"] for one in seeds]
        models = ", ".join(dict.fromkeys(arm["client_models"])) or "-"
        table.append(
            [
                _name(results, arm),
                f"{models} -> {arm['server_model'] or '-'}",
                *(_view(arm, view, measure) for view in _views(results)),
                *([_epsilon(seeds)] if _is_private(results) else []),
                _bytes([sum(r["bytes_up"] for r in one["rounds"]) for one in seeds]),
                _bytes([sum(r["bytes_down"] for r in one["rounds"]) for one in seeds]),
                _bytes([one["bytes_setup"] for one in seeds]),
                _bytes(public),
                _bytes(total),
                _bytes(list(map(sum, zip(total, public, strict=True)))),
                *([_bytes([one["bytes_transport"] for one in seeds])] if on_network else []),
                *([_bytes([one.get("bytes_evaluation", 0) for one in seeds])] if evaluated_at_sites else []),
                *(_work(seeds, results["task"]["clients"]) if counts_work else []),
            ]
        )
    return table


def _name(results: AnyResultsJson, arm: AnyArmJson) -> str:
    """Return an arm's name, with its status, or how many of its seeds are done, unless all is well."""
    states = [one["status"] for one in of_seeds(arm)]
    if "seeds" not in results:
        return arm["name"] if states == ["done"] else f"{arm['name']} [{states[0]}]"
    done, failed, asked = states.count("done"), states.count("failed"), len(results["seeds"])
    if done == asked:
        return arm["name"]
    return f"{arm['name']} [{done} of {asked} seeds{f', {failed} failed' if failed else ''}]"


def _view(arm: AnyArmJson, view: str, measure: Measure) -> str:
    found = [one for one in (last_and_best(one, view, measure) for one in counted(arm)) if one is not None]
    if not found:
        return "-"
    if "seeds" not in arm:
        ((last, best, number),) = found
        return f"{measure.write(last)} ({measure.write(best)} @{number})"
    lasts, bests = [last for last, _, _ in found], [best for _, best, _ in found]
    return f"{_values(lasts, measure)} ({_values(bests, measure)})"


def _epsilon(seeds: Sequence[SeedJson]) -> str:
    """Return the most that a client has spent of its privacy with any seed, rounded up."""
    spent = [one["privacy"]["most"] for one in seeds if "privacy" in one]
    return f"{math.ceil(max(spent) * 100) / 100:g}" if spent else "-"


def _values(values: Sequence[float], measure: Measure) -> str:
    spread = Spread.of(values)
    deviation = "" if spread.deviation is None else f" ± {measure.write(spread.deviation)}"
    return measure.write(spread.mean) + deviation


def _views(results: AnyResultsJson) -> tuple[str, ...]:
    """Return the views that have a column: all, but ``server@own`` only if an arm has it."""
    had = {
        view
        for arm in results["arms"]
        for one in of_seeds(arm)
        for entry in one["rounds"]
        for view in entry["views"]
    }
    return tuple(view for view in VIEWS if view != SERVER_OWN or view in had)


def _bytes(values: Sequence[float], write: Callable[[int], str] = format_bytes) -> str:
    """Return the mean, and the standard deviation unless all values are the same."""
    spread = Spread.of(values)
    deviation = f" ± {write(round(spread.deviation))}" if spread.deviation else ""
    return write(round(spread.mean)) + deviation


def _work(seeds: Sequence[SeedJson], clients: int) -> list[str]:
    """Return the mean multiply-adds of a client, and the memory of the one whose training takes most."""
    counted = [one for one in seeds if "multiply_adds" in one]
    if len(counted) < len(seeds):
        return ["-", "-"]
    memory = [one["memory"] for one in counted]
    return [
        _bytes([one["multiply_adds"] / clients for one in counted], format_count),
        _bytes(memory) if any(memory) else "-",
    ]


def headings(results: AnyResultsJson) -> tuple[str, ...]:
    """Return the names of the columns.

    Only a run on a network has transport overhead, only one whose clients have evaluated the server's model
    has ``server@own`` and the bytes of that, only one in which it was counted has the clients' work, and only
    one with noise has ε.
    """
    transport = ("transport",) if _on_network(results) else ()
    evaluation = ("evaluation",) if _evaluated_at_sites(results) else ()
    work = _WORK if _counts_work(results) else ()
    privacy = (_EPSILON,) if _is_private(results) else ()
    return ("arm", "clients -> server", *_views(results), *privacy, *_BYTES, *transport, *evaluation, *work)


def _is_private(results: AnyResultsJson) -> bool:
    return any("privacy" in one for arm in results["arms"] for one in of_seeds(arm))


def _on_network(results: AnyResultsJson) -> bool:
    return any(one["bytes_transport"] for arm in results["arms"] for one in of_seeds(arm))


def _evaluated_at_sites(results: AnyResultsJson) -> bool:
    return any("bytes_evaluation" in one for arm in results["arms"] for one in of_seeds(arm))


def _counts_work(results: AnyResultsJson) -> bool:
    return any("multiply_adds" in one for arm in results["arms"] for one in of_seeds(arm))


_EPSILON = "ε"
_BYTES = ("up", "down", "set-up", "public data", "total", "total + public")
_WORK = ("multiply-adds", "memory")
_ALWAYS = ("arm", *VIEWS, _EPSILON, "up", "down")
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
    work = {place for place, name in enumerate(names) if name in _WORK}
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
    if any(names[place] in _WORK for place in shown):
        caption += "; multiply-adds and memory of a client"
    if "seeds" in results:
        title += f", seeds {_listed(results['seeds'])}"
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


def reached(arm: SeedJson, view: str, target: float, measure: Measure = ACCURACY) -> tuple[int, int] | None:
    """Return the bytes until a view first reached a target, and the round; None if it never did.

    Set-up is included, public data is not.
    """
    sent = arm["bytes_setup"]
    for entry in arm["rounds"]:
        sent += entry["bytes_up"] + entry["bytes_down"]
        if measure.reaches(measure.value(entry, view), target):
            return sent, entry["round"]
    return None


def reach_markdown(
    results: AnyResultsJson, view: str, targets: Sequence[float], measure: Measure = ACCURACY
) -> str:
    """Return the bytes that an arm needs to reach targets in a view; with public data after the slash."""
    heads = [f"{view} {target:.0%}" for target in targets]
    if measure != ACCURACY:
        heads = [f"{view} {measure.name} {measure.write(target)}" for target in targets]
    lines = [f"| arm | codec | {' | '.join(heads)} |", f"|---|---|{'|'.join('---:' for _ in targets)}|"]
    for arm in results["arms"]:
        seeds = counted(arm)
        entries = [entry for one in seeds for entry in one["rounds"]]
        if all(measure.value(entry, view) is None for entry in entries):
            continue
        cells = []
        for target in targets:
            found = [reached(one, view, target, measure) for one in seeds]
            cells.append(_reached_by_all(seeds, found) if "seeds" in arm else _reached(seeds[0], found[0]))
        name = _name(results, arm) if "seeds" in arm else arm["name"]
        names = (name.replace("|", r"\|"), arm["codec"])
        lines.append(f"| {' | '.join([*names, *cells])} |")
    if "seeds" in results:
        lines += [
            "",
            f"Median (smallest to largest) of seeds {_listed(results['seeds'])}; a seed that does not reach"
            f" {'an accuracy' if measure == ACCURACY else 'a target'} counts as more than any number, shown"
            " as `-`.",
        ]
    return "\n".join(lines)


def _reached(seed: SeedJson, found: tuple[int, int] | None) -> str:
    if found is None:
        return "-"
    sent, number = found
    public = seed["bytes_public"]
    return f"{format_bytes(sent)}{f' / {format_bytes(sent + public)}' if public else ''} @{number}"


def _reached_by_all(seeds: Sequence[SeedJson], found: Sequence[tuple[int, int] | None]) -> str:
    sent = MedianAndRange.of([None if one is None else one[0] for one in found])
    if sent.smallest is None:
        return "-"
    text = _median_and_range(sent)
    if any(one["bytes_public"] for one in seeds):
        with_public = [
            None if one is None else one[0] + seed["bytes_public"]
            for seed, one in zip(seeds, found, strict=True)
        ]
        text += f" / {_median_and_range(MedianAndRange.of(with_public))}"
    number = MedianAndRange.of([None if one is None else one[1] for one in found]).median
    return text if number is None else f"{text} @{number:g}"


def _median_and_range(found: MedianAndRange) -> str:
    median, smallest, largest = (
        "-" if value is None else format_bytes(round(value))
        for value in (found.median, found.smallest, found.largest)
    )
    return median if smallest == largest else f"{median} ({smallest} to {largest})"


def markdown(results: AnyResultsJson, measure: Measure = ACCURACY) -> str:
    """Return the table as Markdown."""
    names = headings(results)
    lines = [
        f"| {' | '.join(names)} |",
        f"|{'|'.join('---' if place < 2 else '---:' for place in range(len(names)))}|",
    ]
    for row in rows(results, measure):
        cells = [cell.replace("|", r"\|") for cell in row]  # a bar in a name would start a new cell
        lines.append(f"| {' | '.join(cells)} |")
    if "seeds" in results:
        seeds = _listed(results["seeds"])
        lines += ["", f"Mean ± standard deviation (n - 1) over seeds {seeds}: last round (best round)."]
    if _counts_work(results):
        lines += [
            "",
            "Bytes are summed over clients. Multiply-adds are those of one client in all rounds, the mean"
            " over clients; memory is what a training step takes, at the client where it takes most.",
        ]
    if _is_private(results):
        every = [one for arm in results["arms"] for one in of_seeds(arm)]
        deltas = sorted({one["privacy"]["delta"] for one in every if "privacy" in one})
        lines += [
            "",
            f"ε is the most that a client has spent of its privacy, at δ = {', '.join(map(str, deltas))};"
            " results.json says what it protects, and from whom.",
        ]
    return "\n".join(lines)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
