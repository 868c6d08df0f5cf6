"""Where the files of a Hugging Face model are on this machine, and what its JSON files say."""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from fedistill.config.hf import HfModel
from fedistill.config.plugins import Reference, ask, is_asked
from fedistill.config.section import RawTable
from fedistill.errors import ExperimentError
from fedistill.hub import Denial, denial_of

CONFIG, PIXELS, TOKENIZER_CONFIG = "config.json", "preprocessor_config.json", "tokenizer_config.json"
TOKENIZER, SENTENCE_ENCODER = "tokenizer.json", "modules.json"
_WANTED = ["*.json", "*.safetensors"]
"""No code and no pickle."""
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
PERMISSION = "hf"
"""What stands for these models in a list of allowed modules."""


def folder_of(name: str) -> Path:
    """Return the folder of a model: the one that it names, or its copy from the hub, brought if need be.

    Where an experiment is somebody else's, at a node, nothing is brought.

    Raises:
        ExperimentError: there is no such folder, the hub does not have it or cannot be reached, or these
            models are not allowed here.
    """
    ask(Reference("model", name, PERMISSION))
    model = HfModel.read(name)
    folder = Path(model.place)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.place.startswith(".") or not _ON_HUB.fullmatch(model.place):
        raise ExperimentError(
            f"model {model.name!r}: there is no such folder; write hf:FOLDER, as seen from the current"
            " folder, or hf:OWNER/NAME of the hub"
        )
    return _from_hub(model.place, fetch=not is_asked())


@functools.lru_cache(maxsize=32)
def _from_hub(place: str, fetch: bool) -> Path:
    """Return the copy of a model on this machine; a newer one on the hub is not looked for."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError  # no attribute of the package until imported

    name, _, revision = place.partition("@")

    def copy(local: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=_WANTED, local_files_only=local
            )
        )

    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            found = copy(local=True)
            if not fetch or any(found.glob("*.safetensors")):
                return found
        return copy(local=not fetch)
    except Exception as error:  # the hub client's errors have no common base class
        denial = denial_of(error, place) if fetch else Denial("nothing is, for somebody else's experiment")
        version = f" --revision {revision}" if revision else ""
        raise ExperimentError(
            f"model 'hf:{place}' is not on this machine and was not fetched ({denial.reason}):"
            f" {denial.fix or f'bring it by `hf download {name}{version}`, or name a folder that has it'}"
        ) from None


def digest_of(name: str) -> str:
    """Return the digest of a model's weights, configuration and tokenizer, which all participants must have.

    Raises:
        ExperimentError: as `folder_of`.
    """
    folder = folder_of(name)
    settings = map(folder.joinpath, (CONFIG, TOKENIZER, TOKENIZER_CONFIG, PIXELS, SENTENCE_ENCODER))
    parts = folder.glob(f"*/{CONFIG}")  # of a sentence encoder, such as its pooling
    files = sorted([*folder.glob("*.safetensors"), *settings, *parts])
    return _digest(folder, tuple((path, path.stat().st_mtime_ns) for path in files if path.is_file()))


@functools.lru_cache(maxsize=32)
def _digest(folder: Path, files: tuple[tuple[Path, int], ...]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for path, _ in files:
        found.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return found.hexdigest()


def check_digests(wanted: Mapping[str, str]) -> None:
    """Raise unless models here, by name, are those whose digests are given.

    Raises:
        ExperimentError: as `folder_of`, or the files differ.
    """
    for name, digest in wanted.items():
        if digest_of(name) != digest:
            raise ExperimentError(
                f"model {name!r}: its files here are not those that the run began with, or that the server"
                " has: bring the same ones"
            )


def read_json(folder: Path, file: str, model: str) -> RawTable:
    """Return the table in a JSON file of a model.

    Raises:
        ExperimentError: there is none, or it is no table.
    """
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExperimentError(f"model {model!r}: its folder has no {file}: save all of it there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExperimentError(f"model {model!r}: its {file} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise ExperimentError(f"model {model!r}: its {file} must be a table")
    return found


def tokenizer_file(folder: Path, model: str) -> Path:
    """Return the file with the tokenizer of a model of texts.

    Raises:
        ExperimentError: there is none.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise ExperimentError(
            f"model {model!r}: its folder has no {TOKENIZER}: write one by"
            " transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return path
