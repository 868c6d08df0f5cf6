"""An arm before round 1: what crosses, what it costs, and the state of its server.

Sums of columns, a vocabulary or an encoding, and a saved model cross, where an arm needs them.
"""

from collections.abc import Iterable

from fedistill.communication.kinds import Kind
from fedistill.communication.protocol.frame import EVERYONE, Frame, encode
from fedistill.data.task import Task
from fedistill.federation.arm import ReadyArm
from fedistill.federation.client_states import ClientStates
from fedistill.federation.failures import failing_at
from fedistill.federation.history import ArmRun
from fedistill.federation.ledger import SETUP_ROUND, Ledger
from fedistill.methods.registry import AnyMethod
from fedistill.models import registry as models
from fedistill.training.model_state import ModelState


def public_bytes(arm: ReadyArm) -> int:
    """One copy of the public set for each client that needs one."""
    if arm.task.public is None or "clients" not in arm.method.needs.public:
        return 0
    return arm.task.public.bytes * len(arm.task.clients)


def setup_frames(arm: ReadyArm, client: int) -> list[bytes]:
    """Return the frames that a client gets before round 1.

    It must hold a saved start if all clients build their models alike, or if the downlink's codec codes
    the first weights as a difference to the start. Any other is sent the start in an ordinary message, or
    has no use for it.
    """
    own, travelling = arm.federation.clients[client].model, arm.travelling(client)
    alike = arm.method.clients_build_common
    start = arm.federation.starts.get(own if alike else travelling)
    sent = [vocabulary_frame(arm.method, arm.task, {own, travelling})]
    if start is not None and (alike or arm.initial_shared_state(client).parts):
        sent.append(start_frame(start))
    return [frame for frame in sent if frame]


def setup_ledger(arm: ReadyArm) -> Ledger:
    """Return what an arm costs before round 1."""
    ledger = Ledger(public=public_bytes(arm))
    if not is_alone(arm.method):
        for client, frame in enumerate(arm.task.column_sums):
            ledger.count(SETUP_ROUND, client, "up", frame)
    for info in arm.federation.clients:
        for frame in setup_frames(arm, info.id):
            ledger.count(SETUP_ROUND, info.id, "down", frame)
    return ledger


def start_run(arm: ReadyArm) -> ArmRun:
    """Return an arm before round 1, its set-up traffic counted.

    Raises:
        TrainingError: the server cannot start.
    """
    ledger = setup_ledger(arm)
    with failing_at("before round 1, server"):
        server = arm.method.start_server(arm.server(SETUP_ROUND))
    return ArmRun(0, server, ClientStates(), ledger)


def vocabulary_frame(method: AnyMethod, task: Task, names: Iterable[str]) -> bytes:
    """Return the frame with the vocabulary for a client that uses models of these names, or nothing.

    Clients that hold the public set build the vocabulary from it; others are sent it. The same holds for the
    encoding of a table's rows, which is sent to all if it is from sums that clients share. A tokenizer of the
    user's own is sent to all. One that a model declares comes with the model's code, and hashed words need
    none.
    """
    builds = "clients" in method.needs.public and task.vocabulary_from_public
    wanted = [models.preprocessing(method.inputs_of(name)) for name in names]
    brings = all(one.tokenizer is not None or one.buckets is not None for one in wanted)
    return b"" if is_alone(method) or builds or brings else task.vocabulary_frame


def is_alone(method: AnyMethod) -> bool:
    """Whether nothing crosses in any round, as of a control."""
    return method.uplink is None and method.downlink is None


def start_frame(start: ModelState) -> bytes:
    """Return the frame with a saved model, as float32 and int64."""
    sections = start.weights.numpy().tobytes(), start.integers.numpy().tobytes()
    return encode(Frame(Kind.WEIGHTS, SETUP_ROUND, EVERYONE, sections))
