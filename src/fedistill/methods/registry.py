"""The methods by name, and how an arm names one."""

from typing import Any

from pydantic import ValidationError

from fedistill.communication.messages.base import Message
from fedistill.config.messages import explain_errors
from fedistill.config.schema import Arm
from fedistill.errors import ExperimentError, nearest
from fedistill.methods.base import Method
from fedistill.methods.classwise.fd import Fd
from fedistill.methods.classwise.fd_plus import FdPlus
from fedistill.methods.classwise.fedproto import FedProto
from fedistill.methods.classwise.fedtgp import FedTgp
from fedistill.methods.controls.local import Local
from fedistill.methods.controls.server_alone import ServerAlone
from fedistill.methods.features.fedgen import FedGen
from fedistill.methods.features.fedgkt import FedGkt
from fedistill.methods.labels.cfd import Cfd
from fedistill.methods.labels.comet import Comet
from fedistill.methods.labels.dsfl import DsFl
from fedistill.methods.labels.edge_fd import EdgeFd
from fedistill.methods.labels.fedgems import FedGems
from fedistill.methods.labels.fedmd import FedMd
from fedistill.methods.labels.scarlet import Scarlet
from fedistill.methods.labels.selective_fd import SelectiveFd
from fedistill.methods.labels.voting import Voting
from fedistill.methods.weights.fed_et import FedEt
from fedistill.methods.weights.fedavg import FedAvg
from fedistill.methods.weights.feddf import FedDf
from fedistill.methods.weights.fedkd import FedKd
from fedistill.methods.weights.fedprox import FedProx
from fedistill.methods.weights.fml import Fml

AnyMethod = Method[Message, Message, Any, Any]

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


def create_method(arm: Arm) -> AnyMethod:
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
        raise ExperimentError(explain_errors(error, f"arm {arm.name!r}", method.Settings)) from None
    return method(settings)
