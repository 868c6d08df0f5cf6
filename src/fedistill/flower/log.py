"""What the server's part prints of a run; Flower keeps it in its log."""

from collections.abc import Sequence

from fedistill.experiment.findings import Finding
from fedistill.federation.history import RoundRecord


def say(what: str) -> None:
    print(what, flush=True)


class RunLog:
    """Prints how a run goes on (`fedistill.experiment.runner.Watcher`)."""

    def findings(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            say(f"{finding.level} {finding}")

    def arm(self, name: str, rounds: int, done: int) -> None:
        say(f"arm {name}: round {done} of {rounds} is done")

    def round(self, name: str, record: RoundRecord) -> None:
        shown = ", ".join(f"{view} {value:.1%}" for view, value in record.views.items())
        say(f"arm {name}: round {record.round}: {shown}")
        for client, why in record.missing.items():
            say(f"arm {name}: round {record.round}: without client {client}: {why}")

    def failed(self, name: str, error: str) -> None:
        say(f"arm {name} failed: {error}")
