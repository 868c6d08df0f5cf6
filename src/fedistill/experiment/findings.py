"""What checks before a run have found, and how it is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedistill.errors import ExperimentError

Level = Literal["error", "warning", "fact"]
_ARM = "arm "


@dataclass(frozen=True)
class Finding:
    """Something that a check has found. Errors stop the run, warnings and facts do not."""

    level: Level
    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f": {self.fix}" if self.fix else "")


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise one `ExperimentError` with all errors among the findings, if there are any."""
    errors = merged([finding for finding in findings if finding.level == "error"])
    if errors:
        raise ExperimentError("\n".join(map(str, errors)))


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with each thing that is wrong once; one about several arms names them all."""
    places: dict[tuple[Level, str, str], list[str]] = {}
    for finding in findings:
        found = places.setdefault((finding.level, finding.what, finding.fix), [])
        if finding.where not in found:
            found.append(finding.where)
    return [Finding(level, _named_together(found), what, fix) for (level, what, fix), found in places.items()]


def _named_together(places: Sequence[str]) -> str:
    if len(places) > 1 and all(place.startswith(_ARM) for place in places):
        return f"arms {', '.join(place.removeprefix(_ARM) for place in places)}"
    return "; ".join(places)
