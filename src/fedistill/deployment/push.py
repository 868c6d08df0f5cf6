"""Uploads the folder of a saved or exported model to the Hugging Face hub."""

import re
from pathlib import Path

from fedistill.deployment.description import FILE, Description
from fedistill.deployment.export import FILES as PROGRAMS
from fedistill.deployment.export_hf import FILES as OF_TRANSFORMERS
from fedistill.errors import ExperimentError, RuntimeFailure
from fedistill.models.huggingface.folder import CONFIG

FILES = (FILE, *OF_TRANSFORMERS, *PROGRAMS.values())
"""All that is ever uploaded, each if it is there."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a model as one commit, and make its repository if there is none; return the commit's address.

    The token is that of ``hf auth login`` or of the variable HF_TOKEN.

    Args:
        folder: of a saved model, or what ``export --hf`` wrote.
        private: make a private repository; else it is as the owner's default has it.
        revision: the branch, which is made if there is none; default: main.
        endpoint: of the hub; default: the variable HF_ENDPOINT, or the public one.

    Raises:
        ExperimentError: there is no model in the folder, or ``repository`` is not OWNER/NAME.
        RuntimeFailure: the hub refuses it or cannot be reached.
    """
    import huggingface_hub

    if not _REPOSITORY.fullmatch(repository):
        raise ExperimentError(f"{repository}: write OWNER/NAME, the repository on the hub")
    files = _files(folder)
    hub = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files,
            revision=revision,
            commit_message="Upload a model trained by fedistill",
        )
    except Exception as error:  # the hub client's errors have no common base class
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RuntimeFailure(
            f"{repository} was not uploaded ({reason}): log in by `hf auth login` or set HF_TOKEN, with the"
            " right to write there"
        ) from None
    return str(commit.commit_url)


def _files(folder: Path) -> list[str]:
    """Return the names of a model's files in its folder.

    Raises:
        ExperimentError: it is not the folder of a model, or one of them lies elsewhere.
    """
    if not (folder / CONFIG).is_file():
        Description.read(folder)
    found = [name for name in FILES if (folder / name).is_file()]
    if linked := [name for name in found if (folder / name).is_symlink()]:
        raise ExperimentError(f"{folder / linked[0]}: is a link: put the file itself there")
    return found
