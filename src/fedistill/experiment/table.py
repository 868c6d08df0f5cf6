"""The table that ends a run: accuracy beside bytes, with and without public data, and beside clients' work.

With several seeds, accuracies, bytes and work are means ± sample standard deviations (n - 1) over the seeds
that are done.
"""

import math
from collections.abc import Callable, Sequence

from fedistill.config.units import format_bytes, format_count
from fedistill.experiment.measure import ACCURACY, Measure
from fedistill.experiment.results import AnyArmJson, AnyResultsJson, SeedJson, counted, of_seeds
from fedistill.experiment.spread import Spread
from fedistill.federation.evaluation import SERVER_OWN, VIEWS

EPSILON = "ε"
_BYTES = ("up", "down", "set-up", "public data", "total", "total + public")
WORK = ("multiply-adds", "memory")


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
    networked, counts_work = on_network(results), _counts_work(results)
    evaluated_at_sites = _evaluated_at_sites(results)
    for arm in results["arms"]:
        seeds = counted(arm)
        public = [one["bytes_public"] for one in seeds]
        total = [one["bytes_total"] for one in seeds]
        models = ", ".join(dict.fromkeys(arm["client_models"])) or "-"
        table.append(
            [
                arm_name(results, arm),
                f"{models} -> {arm['server_model'] or '-'}",
                *(_view(arm, view, measure) for view in _views(results)),
                *([_epsilon(seeds)] if _is_private(results) else []),
                _bytes([sum(r["bytes_up"] for r in one["rounds"]) for one in seeds]),
                _bytes([sum(r["bytes_down"] for r in one["rounds"]) for one in seeds]),
                _bytes([one["bytes_setup"] for one in seeds]),
                _bytes(public),
                _bytes(total),
                _bytes(list(map(sum, zip(total, public, strict=True)))),
                *([_bytes([one["bytes_transport"] for one in seeds])] if networked else []),
                *([_bytes([one.get("bytes_evaluation", 0) for one in seeds])] if evaluated_at_sites else []),
                *(_work(seeds, results["task"]["clients"]) if counts_work else []),
            ]
        )
    return table


def arm_name(results: AnyResultsJson, arm: AnyArmJson) -> str:
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
    return f"{math.ceil(max(spent) * 100 - 1e-6) / 100:g}" if spent else "-"


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
    transport = ("transport",) if on_network(results) else ()
    evaluation = ("evaluation",) if _evaluated_at_sites(results) else ()
    work = WORK if _counts_work(results) else ()
    privacy = (EPSILON,) if _is_private(results) else ()
    return ("arm", "clients -> server", *_views(results), *privacy, *_BYTES, *transport, *evaluation, *work)


def _is_private(results: AnyResultsJson) -> bool:
    return any("privacy" in one for arm in results["arms"] for one in of_seeds(arm))


def on_network(results: AnyResultsJson) -> bool:
    return any(one["bytes_transport"] for arm in results["arms"] for one in of_seeds(arm))


def _evaluated_at_sites(results: AnyResultsJson) -> bool:
    return any("bytes_evaluation" in one for arm in results["arms"] for one in of_seeds(arm))


def _counts_work(results: AnyResultsJson) -> bool:
    return any("multiply_adds" in one for arm in results["arms"] for one in of_seeds(arm))


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
        seeds = listed(results["seeds"])
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


def listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
