"""The methods: one file each, and one line in the registry."""

from pydantic import ValidationError

from fedistill.config import Arm
from fedistill.errors import ExperimentError, nearest
from fedistill.explain import describe
from fedistill.methods.base import Method
from fedistill.methods.cfd import Cfd
from fedistill.methods.comet import Comet
from fedistill.methods.dsfl import DsFl
from fedistill.methods.edge_fd import EdgeFd
from fedistill.methods.fd import Fd
from fedistill.methods.fd_plus import FdPlus
from fedistill.methods.fed_et import FedEt
from fedistill.methods.fedavg import FedAvg
from fedistill.methods.feddf import FedDf
from fedistill.methods.fedgems import FedGems
from fedistill.methods.fedgen import FedGen
from fedistill.methods.fedgkt import FedGkt
from fedistill.methods.fedkd import FedKd
from fedistill.methods.fedmd import FedMd
from fedistill.methods.fedproto import FedProto
from fedistill.methods.fedprox import FedProx
from fedistill.methods.fedtgp import FedTgp
from fedistill.methods.fml import Fml
from fedistill.methods.local import Local
from fedistill.methods.scarlet import Scarlet
from fedistill.methods.selective_fd import SelectiveFd
from fedistill.methods.server_alone import ServerAlone
from fedistill.methods.voting import Voting
from fedistill.wire.message import Message

AnyMethod = Method[Message, Message]

METHODS: dict[str, type[Method]] = {  # type: ignore[type-arg]  # each has messages of its own
    method.name: method
    for method in (
        Local,
        ServerAlone,
        FedAvg,
        FedProx,
        Fd,
        FedMd,
        DsFl,
        Cfd,
        Scarlet,
        Voting,
        FedDf,
        FdPlus,
        FedProto,
        FedTgp,
        FedGen,
        Fml,
        FedKd,
        FedEt,
        FedGkt,
        FedGems,
        Comet,
        SelectiveFd,
        EdgeFd,
    )
}


def create(arm: Arm) -> AnyMethod:
    """Return the method of an arm with its settings.

    Raises:
        ExperimentError: the method is unknown, or one of its settings is.
    """
    if arm.method not in METHODS:
        known = ", ".join(METHODS)
        raise ExperimentError(
            f"arm {arm.name!r}: method {arm.method!r} is not one of {known}.{nearest(arm.method, METHODS)}"
        )
    method = METHODS[arm.method]
    own = [*method.Settings.model_fields]
    for key in arm.settings:
        if key not in own:
            raise ExperimentError(
                f"arm {arm.name!r}: unknown key `{key}`.{nearest(key, [*Arm.model_fields, *own])}"
                f" Settings of method {arm.method}: {', '.join(own) or 'none'}"
            )
    try:
        settings = method.Settings.model_validate(arm.settings)
    except ValidationError as error:
        raise ExperimentError(describe(error, f"arm {arm.name!r}", method.Settings)) from None
    return method(settings)
