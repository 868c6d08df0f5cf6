"""Writes what a run leaves to be read: ``results.json`` and ``report.html``."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from fedistill.config.link import PROFILES, Link, LinkUse, round_seconds
from fedistill.config.schema import Experiment
from fedistill.experiment.html import render
from fedistill.experiment.results import AnyResultsJson
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.experiment.shown_settings import shown_settings
from fedistill.experiment.side_by_side import named, side_by_side
from fedistill.federation.history import RoundRecord
from fedistill.state import write_file

Times = dict[str, dict[str, list[list[float]]]]
"""Simulated seconds to the end of each round, by link and arm, for each of its seeds."""


def write_results(folder: RunFolder, experiment: Experiment, content: AnyResultsJson) -> None:
    """Write both files."""
    write_file(folder.path / "results.json", json.dumps(content, indent=1).encode())
    _write_report(folder, experiment, content)


def rewrite_report(path: Path, warn: Callable[[str], None]) -> AnyResultsJson:
    """Write ``report.html`` of a finished run again from its results and events.

    Args:
        warn: is told if the page cannot be written, as in a folder that is only to be read.

    Raises:
        ExperimentError: there are no results in the folder.
    """
    content = read_results(path)
    folder = RunFolder(path)
    try:
        _write_report(folder, folder.experiment(), content)
    except OSError as error:
        warn(f"{path / 'report.html'} cannot be written ({error.strerror})")
    return content


def read_side_by_side(runs: Mapping[str, Path]) -> AnyResultsJson:
    """Return the arms of several runs, by name and folder, side by side.

    Raises:
        ExperimentError: there are no results in one of the folders.
    """
    return side_by_side({name: read_results(folder) for name, folder in runs.items()})


def write_side_by_side(path: Path, runs: Mapping[str, Path]) -> AnyResultsJson:
    """Write one page over several runs, by name and folder; return their arms side by side.

    Links are those of the first run, and its own; settings are those of all, one after the other.

    Raises:
        ExperimentError: there are no results in one of the folders.
    """
    content = read_side_by_side(runs)
    folders = {name: RunFolder(folder) for name, folder in runs.items()}
    experiments = {name: folder.experiment() for name, folder in folders.items()}
    first, links = _links(next(iter(experiments.values())).link)
    times: Times = {link: {} for link in links}
    for name, folder in folders.items():
        for link, arms in _times(folder, read_results(folder.path), links).items():
            times[link] |= {named(name, arm): each for arm, each in arms.items()}
    settings = "\n".join(
        f"# {name}\n{shown_settings(one, read_results(folders[name].path))}"
        for name, one in experiments.items()
    )
    _write_page(path, content, times, links, settings, first)
    return content


def _write_report(folder: RunFolder, experiment: Experiment, content: AnyResultsJson) -> None:
    first, links = _links(experiment.link)
    times = _times(folder, content, links)
    _write_page(
        folder.path / "report.html", content, times, links, shown_settings(experiment, content), first
    )


def _write_page(
    path: Path, content: AnyResultsJson, times: Times, links: Mapping[str, Link], settings: str, first: str
) -> None:
    described = {name: link.model_dump() for name, link in links.items()}
    write_file(path, render(content, times, described, settings, first).encode())


def _times(folder: RunFolder, content: AnyResultsJson, links: Mapping[str, Link]) -> Times:
    records = {}
    for arm in content["arms"]:
        folders = [folder.of_seed(one["seed"]) for one in arm["seeds"]] if "seeds" in arm else [folder]
        records[arm["name"]] = [one.records(arm["name"]) for one in folders]
    return {
        name: {arm: [link_times(link, rounds) for rounds in seeds] for arm, seeds in records.items()}
        for name, link in links.items()
    }


def link_times(link: Link, records: list[RoundRecord]) -> list[float]:
    """Return simulated seconds from the start to the end of each round, every client behind its own link.

    There are none for an arm that an earlier version ran, which did not count all work.
    """
    total, times = 0.0, []
    for record in records:
        if record.multiply_adds is None or record.server_multiply_adds is None:
            return []
        sent = {client: [0, 0] for client in record.clients}
        for entry in record.traffic:
            sent[entry.client][entry.direction == "up"] += entry.bytes
        exchanges = [
            LinkUse(down, work, up)
            for (down, up), work in zip(sent.values(), record.multiply_adds, strict=True)
        ]
        total += round_seconds(link, exchanges, record.server_multiply_adds)
        times.append(total)
    return times


def _links(link: str | Link) -> tuple[str, dict[str, Link]]:
    """Return the report's first choice of link by name, and all links that it offers."""
    if isinstance(link, str):
        return link, dict(PROFILES)
    return link.title, {link.title: link, **PROFILES}
