"""What an experiment would cost with many more clients than its task has, by figures of those."""

from collections.abc import Sequence

from fedistill.config.units import format_bytes
from fedistill.experiment.findings import Finding
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_sampling import participants
from fedistill.federation.expected_bytes import expected_bytes
from fedistill.federation.setup import public_bytes


def at_scale(arms: Sequence[ReadyArm], clients: int) -> list[Finding]:
    """Return a fact about each arm with so many clients, which are like those of its task."""
    return [Finding("fact", f"arm {arm.name!r}", _cost(arm, clients)) for arm in arms]


def _cost(arm: ReadyArm, clients: int) -> str:
    working = participants(arm.sampling, clients)
    step = arm.config.accumulate if isinstance(arm.config.accumulate, int) else 1
    exchanges = -(-arm.rounds // step)
    worked = round(clients * (1 - (1 - working / clients) ** exchanges))
    up, down = expected_bytes(arm, clients)
    said = []
    if up == down == 0:
        said.append("nothing is exchanged")
    elif arm.method.one_shot:
        up, down = up * worked // working, down * worked // working
        said.append(f"about {format_bytes(up)} up and {format_bytes(down)} down or less, once for each")
        said[-1] += f" of the {worked:,} who will have worked"
    else:
        total, unit = format_bytes((up + down) * exchanges), "exchanges" if exchanges > 1 else "exchange"
        said.append(f"about {format_bytes(up)} up and {format_bytes(down)} down or less, ")
        said[-1] += f"{total} in {exchanges} {unit}"
    if public := public_bytes(arm):
        each = public // len(arm.task.clients)
        said.append(f"public data of {format_bytes(worked * each)} for the {worked:,} who will have worked")
    if arm.method.has_client_models:
        weights = 4 * sum(info.parameters for info in arm.federation.clients) // len(arm.federation.clients)
        said.append(f"their models take {format_bytes(worked * weights)} on the disk of a simulation")
    who = f"with {clients:,} clients like these, of which {working:,} work in a round"
    return f"{who}: {'; '.join(said)}"
