"""How many bytes it takes until an accuracy, or another metric, is reached.

With several seeds they are medians with their ranges.
"""

from collections.abc import Sequence

from fedistill.config.units import format_bytes
from fedistill.experiment.measure import ACCURACY, Measure
from fedistill.experiment.results import AnyResultsJson, SeedJson, counted
from fedistill.experiment.spread import MedianAndRange
from fedistill.experiment.table import arm_name, listed


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
        name = arm_name(results, arm) if "seeds" in arm else arm["name"]
        names = (name.replace("|", r"\|"), arm["codec"])
        lines.append(f"| {' | '.join([*names, *cells])} |")
    if "seeds" in results:
        lines += [
            "",
            f"Median (smallest to largest) of seeds {listed(results['seeds'])}; a seed that does not reach"
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
