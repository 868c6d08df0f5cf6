"""What an experiment would cost with many more clients than its task has, by figures of those."""

from collections.abc import Sequence

from fedistill.config.units import format_bytes
from fedistill.experiment.findings import Finding
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_sampling import sample_clients
from fedistill.federation.expected_bytes import expected_bytes
from fedistill.federation.setup import public_bytes


def at_scale(arms: Sequence[ReadyArm], clients: int) -> list[Finding]:
    """Return a fact about each arm with so many clients, which are like those of its task."""
    return [Finding("fact", f"arm {arm.name!r}", _cost(arm, clients)) for arm in arms]


def _cost(arm: ReadyArm, clients: int) -> str:
    participants = len(sample_clients(arm.sampling, clients, arm.seed, round=1))
    step = arm.config.accumulate if isinstance(arm.config.accumulate, int) else 1
    exchanges = 1 if arm.method.one_shot else -(-arm.rounds // step)
    up, down = expected_bytes(arm, clients)
    said = []
    if up or down:
        total, unit = format_bytes((up + down) * exchanges), "exchanges" if exchanges > 1 else "exchange"
        said.append(f"about {format_bytes(up)} up and {format_bytes(down)} down or less, ")
        said[-1] += f"{total} in {exchanges} {unit}"
    else:
        said.append("nothing is exchanged")
    worked = round(clients * (1 - (1 - participants / clients) ** arm.rounds))
    if public := public_bytes(arm):
        each = public // len(arm.task.clients)
        said.append(f"public data of {format_bytes(worked * each)} for the {worked:,} who will have worked")
    if arm.method.has_client_models:
        weights = 4 * sum(info.parameters for info in arm.federation.clients) // len(arm.federation.clients)
        said.append(f"their models take {format_bytes(worked * weights)} on the disk of a simulation")
    who = f"with {clients:,} clients like these, of which {participants:,} work in a round"
    return f"{who}: {'; '.join(said)}"
