"""Writes what a run leaves to be read: ``results.json`` and ``report.html``."""

import json
from collections.abc import Callable
from pathlib import Path

from fedistill.config.link import PROFILES, Link, LinkUse, round_seconds
from fedistill.config.schema import Experiment
from fedistill.config.toml import to_toml
from fedistill.experiment.html import render
from fedistill.experiment.results import AnyResultsJson
from fedistill.experiment.run_folder import RunFolder, read_results
from fedistill.federation.history import RoundRecord
from fedistill.state import write_file


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


def _write_report(folder: RunFolder, experiment: Experiment, content: AnyResultsJson) -> None:
    first, links = _links(experiment.link)
    records = {}
    for arm in content["arms"]:
        folders = [folder.of_seed(one["seed"]) for one in arm["seeds"]] if "seeds" in arm else [folder]
        records[arm["name"]] = [one.records(arm["name"]) for one in folders]
    times = {
        name: {arm: [_link_times(link, rounds) for rounds in seeds] for arm, seeds in records.items()}
        for name, link in links.items()
    }
    described = {name: link.model_dump() for name, link in links.items()}
    page = render(content, times, described, to_toml(experiment), first)
    write_file(folder.path / "report.html", page.encode())


def _link_times(link: Link, records: list[RoundRecord]) -> list[float]:
    """Return simulated seconds from the start to the end of each round, every client behind its own link."""
    total, times = 0.0, []
    for record in records:
        sent = {client: [0, 0] for client in record.clients}
        for entry in record.traffic:
            sent[entry.client][entry.direction == "up"] += entry.bytes
        exchanges = [
            LinkUse(down, work, up) for (down, up), work in zip(sent.values(), record.work, strict=True)
        ]
        total += round_seconds(link, exchanges, record.server_seconds)
        times.append(total)
    return times


def _links(link: str | Link) -> tuple[str, dict[str, Link]]:
    """Return the report's first choice of link by name, and all links that it offers."""
    if isinstance(link, str):
        return link, dict(PROFILES)
    return link.title, {link.title: link, **PROFILES}
