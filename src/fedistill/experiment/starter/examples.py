"""Examples that are shipped with the package: the files of ``examples/`` in the repository.

A wheel has them in ``fedistill/examples`` (setup.py copies them there), a checkout at its top.
"""

from pathlib import Path

import fedistill
from fedistill.errors import ExperimentError, nearest
from fedistill.experiment.starter.new_file import write_new

_PACKAGE = Path(str(fedistill.__file__)).parent
_PLACES = (_PACKAGE / "examples", _PACKAGE.parents[1] / "examples")


def examples() -> dict[str, Path]:
    """Return the examples of one file each, by name; those of a single method are called ``methods/NAME``."""
    folder = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
    found = [*sorted(folder.glob("*.toml")), *sorted(folder.glob("methods/*.toml"))]
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in found if _stands_alone(path)
    }


def write_example(name: str, out: Path | None = None) -> Path:
    """Write an example to a new file, by default in the current folder, and return its path.

    Raises:
        ExperimentError: there is no such example, or the file exists.
    """
    found = examples()
    if name not in found:
        own = ", ".join(known for known in found if "/" not in known)
        raise ExperimentError(
            f"--example {name}: must be one of {own}, or methods/METHOD.{nearest(name, found)}"
        )
    path = out or Path(f"{found[name].stem}.toml")
    write_new(path, found[name].read_text(encoding="utf-8"))
    return path


def _stands_alone(path: Path) -> bool:
    """Whether an example names no module beside it, as one of own models does."""
    return not path.with_name(path.stem.replace("-", "_") + ".py").exists()
