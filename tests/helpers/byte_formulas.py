"""Small runs on digits whose frames are so few and so regular that their bytes can be worked out by hand."""

from typing import Any

from fedistill.federation.arm import ReadyArm
from fedistill.federation.history import ArmRun
from helpers.runs import finished

PUBLIC, CLASSES, CLIENTS = 60, 10, 3


def played(arm: dict[str, Any], rounds: int, **changes: Any) -> tuple[ReadyArm, ArmRun]:
    """The arm after so many rounds; ``changes`` replace tables of the experiment."""
    return finished(
        {
            "rounds": rounds,
            "task": {"name": "digits", "clients": CLIENTS, "limit": 90, "public": PUBLIC},
            "models": {"clients": ["mlp-s"], "server": "mlp-s"},
            "evaluate": {"every": rounds},
            "arms": [arm],
            **changes,
        }
    )


def payloads(run: ArmRun, way: str, client: int = 0) -> list[int]:
    """Payload bytes of one client's frames, in the order of rounds."""
    return [e.payload for e in run.ledger.entries if e.client == client and e.direction == way]
