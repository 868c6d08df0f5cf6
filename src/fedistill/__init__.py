"""fedistill: federated distillation, with every byte counted."""

from fedistill.config import Experiment as Experiment
from fedistill.errors import ExperimentError as ExperimentError
from fedistill.errors import FedistillError as FedistillError
from fedistill.errors import FrameError as FrameError
from fedistill.experiment_file import load as load
from fedistill.experiment_file import parse as parse
from fedistill.models import Signature as Signature
