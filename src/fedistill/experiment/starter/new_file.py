"""New files, which never take the place of another one."""

from pathlib import Path

from fedistill.errors import ExperimentError


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet.

    Raises:
        ExperimentError: it exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise taken(path) from None
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be written ({error})") from None


def taken(path: Path) -> ExperimentError:
    """Return the error for a file that exists already."""
    return ExperimentError(
        f"{path}: exists already and is left as it is: choose another name with --out FILE, or remove it"
    )
