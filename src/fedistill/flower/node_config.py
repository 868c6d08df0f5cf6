"""What a site says of its node: which clients it is, where they compute, and where its own data are."""

import re

from pydantic import ValidationError

from fedistill.config.messages import explain_errors
from fedistill.config.schema import RuntimeConfig
from fedistill.config.task import Source
from fedistill.errors import ExperimentError
from fedistill.flower.allowed_modules import Config

ONE, SEVERAL = "partition-id", "partition-ids"
"""In a node config: the client that a node is, or those that it is."""
_RANGES = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?(, *[0-9]{1,9}(-[0-9]{1,9})?)*")
_OWN_KEYS = ("format", "input", "label", "separator", "encoding", "drop_missing", "background", "white_level")
"""Settings of `[task]` that a node config may have for the site's own data."""


def client_numbers(own: Config, clients: int) -> list[int]:
    """Return the clients that a node config names, ascending.

    Args:
        clients: how many there are.

    Raises:
        ExperimentError: it names none, or one that there is not.
    """
    if SEVERAL not in own:
        client = own.get(ONE)
        if not isinstance(client, int) or not 0 <= client < clients:
            raise ExperimentError(
                f"node config: {ONE} = {client!r} must be a whole number from 0 to {clients - 1}"
            )
        return [client]
    given = own[SEVERAL]
    if ONE in own:
        raise ExperimentError(f"node config: give {ONE} or {SEVERAL}, not both")
    numbers = _numbers(given, clients)
    if not numbers:
        raise ExperimentError(
            f"node config: {SEVERAL} = {given!r} must name whole numbers from 0 to {clients - 1}, for example"
            f' {SEVERAL}="0-9" or {SEVERAL}="0-4, 7"'
        )
    return numbers


def _numbers(given: bool | float | str, clients: int) -> list[int]:
    """Return the numbers of ranges, ascending; none where one is not below the number of clients."""
    if not isinstance(given, str) or not _RANGES.fullmatch(given):
        return []
    pairs = [part.strip().partition("-")[::2] for part in given.split(",")]
    ranges = [range(int(first), int(last or first) + 1) for first, last in pairs]
    if any(len(one) == 0 or one[-1] >= clients for one in ranges):
        return []
    return sorted(set().union(*ranges))


def runtime(own: Config, asked: RuntimeConfig) -> RuntimeConfig:
    """Return where a site's models compute: as its node config says, or else as the experiment does."""
    if "device" not in own:
        return asked
    try:
        return RuntimeConfig.model_validate(asked.model_dump() | {"device": own["device"]})
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "node config", RuntimeConfig)) from None


def own_data(own: Config) -> Source | None:
    """Where a site's own samples are, and how they are read: `train` and, beside it, any of `_OWN_KEYS`."""
    if "train" not in own:
        return None
    given = {key: own[key] for key in ("train", *_OWN_KEYS) if key in own}
    try:
        return Source.model_validate({"format": "parquet", **given})
    except ValidationError as error:
        raise ExperimentError(explain_errors(error, "node config", Source)) from None
