"""fedistill: federated distillation, with every byte counted.

    import fedistill

    experiment = fedistill.load("experiment.toml", ["rounds=5"])
    run = fedistill.compare(experiment)
    print(run)

Each name is imported when it is first used: ``import fedistill`` alone loads neither torch nor numpy.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedistill.aggregation.labels import Aggregation as Aggregation
    from fedistill.communication.codecs.base import Codec as Codec
    from fedistill.communication.messages.base import Message as Message
    from fedistill.config.schema import Experiment as Experiment
    from fedistill.config.toml import load as load
    from fedistill.config.toml import parse as parse
    from fedistill.deployment.classifier import load_model as load_model
    from fedistill.errors import ExperimentError as ExperimentError
    from fedistill.errors import FedistillError as FedistillError
    from fedistill.errors import FrameError as FrameError
    from fedistill.errors import Refusal as Refusal
    from fedistill.errors import RuntimeFailure as RuntimeFailure
    from fedistill.errors import TrainingError as TrainingError
    from fedistill.experiment.api import Run as Run
    from fedistill.experiment.api import compare as compare
    from fedistill.experiment.api import resume as resume
    from fedistill.experiment.callbacks import Callback as Callback
    from fedistill.methods.base import Method as Method
    from fedistill.models.signature import Signature as Signature

    __version__: str

_MODULES = {
    "Aggregation": "aggregation.labels",
    "Callback": "experiment.callbacks",
    "Codec": "communication.codecs.base",
    "Experiment": "config.schema",
    "ExperimentError": "errors",
    "FedistillError": "errors",
    "FrameError": "errors",
    "Message": "communication.messages.base",
    "Method": "methods.base",
    "Refusal": "errors",
    "Run": "experiment.api",
    "RuntimeFailure": "errors",
    "Signature": "models.signature",
    "TrainingError": "errors",
    "compare": "experiment.api",
    "load": "config.toml",
    "load_model": "deployment.classifier",
    "parse": "config.toml",
    "resume": "experiment.api",
}
"""Where each name comes from."""

__all__ = ["__version__", *_MODULES]  # all of them are texts

# Silent in somebody else's program, unless that sets up logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())


if not TYPE_CHECKING:  # else they would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value = version("fedistill")
        elif name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value  # so that it is looked up once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
