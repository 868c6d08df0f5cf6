"""Data sets of the Hugging Face hub, by name."""

import contextlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

from fedistill.config.task import Source
from fedistill.data.table import Splits, place_of
from fedistill.errors import ExperimentError
from fedistill.hub import denial_of

if TYPE_CHECKING:
    from datasets import Dataset

_PATIENCE = 5.0
"""Seconds in which a hub must accept a connection."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def read_hub(name: str, source: Source, test: bool, instead: str | None = None) -> Splits:
    """Read the splits of a data set of the hub, which is downloaded if it is not here.

    Args:
        name: OWNER/NAME, followed by @REVISION or not.
        source: which names its subset and splits.
        test: whether the test split is wanted.
        instead: what else the reader can do if it cannot be fetched.

    Raises:
        ExperimentError: it is not here and cannot be fetched, or is here in another revision; or has no such
            split.
    """
    import datasets

    from fedistill.data.quiet import quietly

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name):
        raise ExperimentError(
            f"{place_of(source)}.name = 'hf:{name}': write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION"
        )
    repository, _, revision = name.partition("@")
    at = {"name": source.subset, "revision": revision or None}
    splits = {"train": str(source.train or "train"), "test": str(source.test or "test")}
    try:
        with quietly(), _offline_without_network():
            known = {_commit_of(repository, revision or "main")}
            available = datasets.get_dataset_split_names(repository, source.subset, revision=at["revision"])
            present = {split: wanted for split, wanted in splits.items() if wanted.split("[")[0] in available}
            found = {
                split: datasets.load_dataset(repository, split=wanted, keep_in_memory=False, **at)
                for split, wanted in present.items()
                if test or split == "train"
            }
            known.add(_commit_of(repository, revision or "main"))  # somebody may have changed it meanwhile
    except Exception as error:  # the hub client's errors have no common base class
        denial = denial_of(error, name, "dataset")
        fix = denial.fix or "download it once while online, or use local files with task.format"
        raise ExperimentError(
            f"data set hf:{name} is not on this machine and could not be fetched ({denial.reason});"
            f" {instead or fix}"
        ) from None
    for split in found.values():
        _check_revision(split, name, known)
    if "train" not in found:
        raise ExperimentError(
            f"data set hf:{name} has no split {splits['train']!r}; it has {', '.join(available)}:"
            f" choose one with {place_of(source)}.train"
        )
    if source.test and "test" not in present:
        raise ExperimentError(
            f"data set hf:{name} has no split {source.test!r}; it has {', '.join(available)}"
        )
    wheres = (f"hf:{name}, split {splits['train']}", f"hf:{name}, split {splits['test']}")
    return Splits(found["train"], found.get("test"), wheres, own_test="test" in present)


def _check_revision(split: "Dataset", name: str, known: Set[str | None]) -> None:
    """Refuse another revision than the one asked for.

    If it does not get an answer, the hub's client opens whatever it has prepared last of a data set, and asks
    neither for the revision of its download nor for the one that it was told.

    Args:
        known: the commit that was asked for, before and after, as far as anything tells; else None.

    Raises:
        ExperimentError: these are other data, or nothing tells whether they are.
    """
    opened = Path(split.cache_files[0]["filename"]).parent.name if split.cache_files else ""
    repository, _, revision = name.partition("@")
    named = _SHORT_COMMIT.fullmatch(revision) and opened.startswith(revision)
    if not _COMMIT.fullmatch(opened) or named or opened in known or (known == {None} and not revision):
        return
    raise ExperimentError(
        f"data set hf:{name}: the hub did not give it now, and what was opened last on this machine is"
        f" revision {opened} of it: connect once, write hf:{repository}@{opened}, or set HF_DATASETS_CACHE to"
        " a folder that has the wanted revision alone"
    )


def _commit_of(repository: str, revision: str) -> str | None:
    """Return the commit that a name stands for now or, if the hub does not say, stood for when last asked."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        found = huggingface_hub.HfApi().dataset_info(
            repository, revision=revision, timeout=_PATIENCE, expand=["sha"]
        )
    except Exception:  # the hub client's errors have no common base class
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="dataset"))
        at = folder / "refs" / revision
        return at.read_text(encoding="utf-8").strip() if at.is_file() else None
    return str(found.sha)


@contextlib.contextmanager
def _offline_without_network() -> Iterator[None]:
    """Use earlier downloads if the hub cannot be reached.

    The hub client would do the same, but only after half a minute of retries for each thing that it asks.
    """
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    if not constants.HF_HUB_OFFLINE and not urllib.request.getproxies():
        port = hub.port or (80 if hub.scheme == "http" else 443)
        try:
            socket.create_connection((hub.hostname or "", port), timeout=_PATIENCE).close()
        except OSError:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
