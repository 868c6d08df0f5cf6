"""fedistill: federated distillation, with every byte counted."""

from fedistill.config.schema import Experiment as Experiment
from fedistill.config.toml import load as load
from fedistill.config.toml import parse as parse
from fedistill.errors import ExperimentError as ExperimentError
from fedistill.errors import FedistillError as FedistillError
from fedistill.errors import FrameError as FrameError
from fedistill.models.signature import Signature as Signature
