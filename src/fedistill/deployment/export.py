"""Programs that need neither fedistill nor the code of a model: of `torch.export`, and ONNX.

A program takes uint8 pixels (n, channels, height, width), int64 token ids (n, length), or encoded rows of a
table, float32 (n, d), as model.json says how they are encoded; for any n. It returns probabilities, float32
(n, C). It is written once its probabilities for real samples are those of the
model.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fedistill.config.training import PREDICTION_BATCH
from fedistill.data.table import Inputs
from fedistill.deployment.classifier import Classifier
from fedistill.errors import ExperimentError
from fedistill.state import write_file
from fedistill.training.loop import to_float

Form = Literal["torch-export", "onnx"]
FILES: dict[Form, str] = {"torch-export": "model.pt2", "onnx": "model.onnx"}
TOLERANCE = 1e-5
"""By which probabilities may differ: other libraries round sums otherwise."""
_Run = Callable[[Tensor], Tensor]
_TALKATIVE = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
"""Loggers that report what is missing for models that are none of ours."""


class Program(nn.Module):
    """What is exported: a network between raw inputs and probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        prepared = to_float(inputs) if inputs.dtype == torch.uint8 else inputs
        probabilities: Tensor = self.network(prepared).softmax(dim=1)
        return probabilities


def export_model(model: Classifier, samples: Inputs, form: Form, folder: Path) -> tuple[Path, float]:
    """Write a model as a program to a folder; return its file and the largest difference of a probability.

    Args:
        samples: on which the program and the model are compared; at least one.

    Raises:
        ExperimentError: the model cannot be exported in this form, the two differ by more than `TOLERANCE`,
            or a package is missing.
    """
    inputs = model.prepare(samples)
    inputs = inputs.long() if inputs.dtype == torch.int32 else inputs
    program = Program(model.network).eval()
    example = torch.cat([inputs[:4], inputs[:4]])  # with one sample, the program would take no more
    data = _quietly({"torch-export": _torch_export, "onnx": _onnx}[form], program, example, form)
    run = {"torch-export": _torch_runner, "onnx": _onnx_runner}[form](data)
    # Torch has no types for `split`.
    found = torch.cat([run(part) for part in inputs.split(PREDICTION_BATCH)])  # type: ignore[no-untyped-call]  # torch
    difference = float((found.double() - model.predict_prepared(samples)).abs().max())
    if not difference <= TOLERANCE:
        raise ExperimentError(
            f"--{form}: probabilities of the exported program differ from the model's by up to"
            f" {difference:.2g}, more than {TOLERANCE:g}, so nothing was written: the model does something"
            " that this form cannot carry"
        )
    write_file(folder / FILES[form], data)
    return folder / FILES[form], difference


def _quietly(
    make: Callable[[Program, Tensor], bytes], program: Program, example: Tensor, form: Form
) -> bytes:
    try:
        with _silenced(), torch.no_grad():
            return make(program, example)
    except ImportError as error:
        raise ExperimentError(
            f"--{form} needs more packages ({error}): pip install 'fedistill[export]'"
        ) from None
    except Exception as error:  # exporters raise whatever they meet in a model
        raise ExperimentError(
            f"--{form}: the model cannot be exported ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:200]})"
        ) from error


@contextmanager
def _silenced() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_ANY_NUMBER = ({0: torch.export.Dim("n")},)
"""The first axis of the only input may have any length."""


def _torch_export(program: Program, example: Tensor) -> bytes:
    exported = torch.export.export(program, (example,), dynamic_shapes=_ANY_NUMBER)
    sink = io.BytesIO()
    torch.export.save(exported, sink)
    return sink.getvalue()


def _torch_runner(data: bytes) -> _Run:
    module = torch.export.load(io.BytesIO(data)).module()

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(inputs)
        return found

    return run


def _onnx(program: Program, example: Tensor) -> bytes:
    import onnxruntime  # noqa: F401  # it is needed to compare, so that it must be missed first

    exported = torch.onnx.export(
        program,
        (example,),
        dynamo=True,
        verbose=False,
        dynamic_shapes=_ANY_NUMBER,
        input_names=["inputs"],
        output_names=["probabilities"],
    )
    assert exported is not None
    return bytes(exported.model_proto.SerializeToString())


def _onnx_runner(data: bytes) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])
