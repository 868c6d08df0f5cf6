"""``audit.json``: what an audit found, in the folder of the run.

A new key does not raise the schema: a program should ignore keys that it does not know.
"""

import json
from pathlib import Path
from typing import NotRequired, final

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic cannot check the one of `typing` before Python 3.12

from fedistill.errors import ExperimentError

SCHEMA = 1
NAME = "audit.json"


class EstimateJson(TypedDict):
    """A figure, and its range with 95 % confidence."""

    value: float
    low: float
    high: float


class MembershipJson(TypedDict):
    """An attack on membership, over all clients that are audited.

    ``asked`` is what gives the scores (``weights``; ``labels, distilled``; …), ``score`` which they are.
    ``tpr`` is by false positive rate, written as ``0.01``; null where there are too few non-members to
    measure it. ``points`` are (false positive rate, true positive rate).
    """

    asked: str
    score: str
    members: int
    others: int
    auc: EstimateJson
    tpr: dict[str, EstimateJson | None]
    points: list[tuple[float, float]]


class DistancesJson(TypedDict):
    """Between guessed and true shares of classes: total variation, 0 to 1, and KL divergence, in nats."""

    total_variation: float
    divergence: float


class SharesJson(DistancesJson):
    """A guess of clients' shares of classes, means over clients; ``uniform``: that all are equal."""

    how: str
    clients: int
    uniform: DistancesJson


class MeansJson(TypedDict):
    """Class means that were decoded (`fedistill.studies.audit.reconstruction.Reconstruction`)."""

    what: str
    means: int
    single: int
    error: float
    usual_error: float
    gain: float
    direction: float


class ArmAuditJson(TypedDict):
    """An arm; ``rounds`` were replayed and found equal. ``notes`` say what limits the figures."""

    name: str
    method: str
    codec: str
    rounds: int
    clients: list[int]
    membership: list[MembershipJson]
    label_shares: list[SharesJson]
    class_means: list[MeansJson]
    notes: list[str]
    seconds: NotRequired[float]


@final
class AuditJson(TypedDict):
    """The complete file; ``results`` is the digest of the results.json that was audited."""

    schema: int
    version: str
    versions: dict[str, str]
    command: str
    results: str
    settings: dict[str, int]
    arms: list[ArmAuditJson]


def read_audit(folder: Path) -> AuditJson | None:
    """Return the audit in a run's folder, or None if there is none.

    Raises:
        ExperimentError: it is damaged, or of another schema.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checked: AuditJson = TypeAdapter(AuditJson).validate_python(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise ExperimentError(f"{path}: cannot be read ({first}); delete it and audit again") from None
    if checked["schema"] != SCHEMA:
        raise ExperimentError(
            f"{path}: has schema {checked['schema']}, which this version does not know; delete it and audit"
            " again"
        )
    return checked
