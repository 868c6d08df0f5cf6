"""Which Gaussians are worth their bytes: one covariance for all classes, variances alone, or mixtures?

    FEDISTILL_DATA=FOLDER python benchmarks/gaussian_heads.py [--tasks NAME ...] [--seed 10]

Tasks are those of benchmarks/flagship.py, with a seed that is not one of its own. The labels of the public
set, which no participant has, judge them; the test set is not read. `shared` is the method `gaussian` as it
is: coded moments, and the payloads of its ten messages; `fine` has 255 levels in place of 3. The others are
given exact features of all clients together, so that they are better here than they could be made; their
bytes are those of means and of variances in steps of a quarter octave: `diagonal` has the variances of each
class (GH-NBdiag of arXiv 2602.01186), `mixture` three Gaussians with a diagonal covariance for each class
(FedPFT, arXiv 2402.01862). Rows are kept in results/gaussian-heads.json, of which docs/flagship.md has a
table.
"""

import argparse
import platform
from pathlib import Path

import torch
from flagship import TASKS, arms_of, experiment
from kept import keep
from sklearn.mixture import GaussianMixture
from torch import Tensor

from fedistill import parse
from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.integer_arrays import Fitted
from fedistill.communication.messages.statistics import MOST_SCALE, FeatureMoments
from fedistill.experiment.runner import prepare
from fedistill.methods.shared.moments import Moments, l2_of_rounding, message_of
from fedistill.methods.sufficient_statistics.gaussian import Gaussian
from fedistill.models.fixed_features import EdgeFrequencies
from fedistill.training.loop import predict

RESULTS = Path(__file__).parent / "results" / "gaussian-heads.json"
WIDTHS = (8, 16, 32, 64, 128)
LEVELS, FINE = 3, 255
MIXED = 3
_ADDED = 0.05
"""The share of a feature's mean variance that is added to that within a class."""
_LEAST = 1e-3
"""A deviation; features are of about unit size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = [name for name in TASKS if name in ("fashion-10", "mnist-10", "digits-10")]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, metavar="NAME")
    parser.add_argument("--seed", type=int, default=10)
    arguments = parser.parse_args()
    for task in arguments.tasks:
        measure(task, arguments.seed)


def measure(task: str, seed: int) -> None:
    kind, setting = TASKS[task]
    arm = arms_of(kind)["gaussian"]
    raw = {**experiment(kind), "seed": seed, "rounds": 1, "task": setting, "arms": [arm]}
    _, (prepared,) = prepare(parse(raw, "gaussian heads"))
    data, truth = prepared.task, prepared.task.public_labels
    assert truth is not None
    classes = len(data.classes)
    private = [_images(client.samples) for client in data.clients]
    labels, public = [client.labels for client in data.clients], _images(data.public.samples)
    for width in WIDTHS:
        if width > EdgeFrequencies.most(tuple(public.shape[1:])):
            break
        features = EdgeFrequencies(tuple(public.shape[1:]), width)
        own, judged = [predict(features, one).double() for one in private], predict(features, public).double()
        described = [*zip(own, labels, strict=True)]
        coarse, fine = ([message_of(*one, levels) for one in described] for levels in (LEVELS, FINE))
        sent = [_payload(message, classes, width) for message in coarse]
        of_variances = [_of_variances(*one) for one in described]
        row = {
            "bytes": sum(sum(parts.values()) for parts in sent),
            "bytes of each": sum(parts["means"] for parts in sent) + sum(of_variances),
            "shared": _share(_shared(coarse, classes, judged), truth),
            "fine": _share(_shared(fine, classes, judged), truth),
            "diagonal": _share(_diagonal(torch.cat(own), torch.cat(labels), classes, judged), truth),
            "mixture": _share(_mixture(torch.cat(own), torch.cat(labels), classes, judged), truth),
            "command": f"python benchmarks/gaussian_heads.py --tasks {task} --seed {seed}",
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        print(task, width, row, flush=True)
        keep(RESULTS, task, str(width), row)


def _images(samples: Tensor) -> Tensor:
    found = torch.as_tensor(samples).float() / 255
    return found if found.dim() == 4 else found[:, None]


def _payload(message: FeatureMoments, classes: int, width: int) -> dict[str, int]:
    """Return the bytes of each array of a message."""
    context = MessageContext(classes=classes, width=width, private=int(message.samples.sum()))
    arrays = FeatureMoments.integer_arrays(context, {"present": message.present, "levels": LEVELS})
    return {name: len(array.write(getattr(message, name).numpy())) for name, array in arrays.items()}


def _of_variances(features: Tensor, labels: Tensor) -> int:
    """Return the bytes of the deviations of each class, given those of the first one."""
    own = [features[labels == one].std(dim=0, correction=0) for one in labels.unique()]
    steps = (4 * torch.stack(own).clamp(min=_LEAST).log2()).round().long().clamp(-MOST_SCALE, MOST_SCALE)
    steps[1:] -= steps[:1].clone()
    return len(Fitted(steps.numel(), 2 * MOST_SCALE).write(steps.flatten().numpy()))


def _shared(messages: list[FeatureMoments], classes: int, judged: Tensor) -> Tensor:
    moments = Moments.none(classes, judged.shape[1])
    for message in messages:
        moments = moments.plus(Moments.of(message, classes))
    samples = [int(message.samples.sum()) for message in messages]
    l2 = l2_of_rounding(samples, judged.shape[1], messages[0].levels)
    weights, biases = Gaussian(Gaussian.Settings()).classifier(moments, l2)
    return judged @ weights.T + biases


def _diagonal(features: Tensor, labels: Tensor, classes: int, judged: Tensor) -> Tensor:
    found = []
    means = torch.stack([features[labels == one].mean(dim=0) for one in range(classes)])
    within = (features - means[labels]).square()
    for one in range(classes):
        variances = within[labels == one].mean(dim=0) + _ADDED * within.mean(dim=0)
        distance = ((judged - means[one]).square() / variances).sum(dim=1)
        found.append(_prior(labels, one) - (distance + variances.log().sum()) / 2)
    return torch.stack(found, dim=1)


def _mixture(features: Tensor, labels: Tensor, classes: int, judged: Tensor) -> Tensor:
    deviations, found = features.std(dim=0), []
    for one in range(classes):
        model = GaussianMixture(MIXED, covariance_type="diag", random_state=0, reg_covar=0.01)
        model.fit((features[labels == one] / deviations).numpy())
        found.append(
            _prior(labels, one) + torch.from_numpy(model.score_samples((judged / deviations).numpy()))
        )
    return torch.stack(found, dim=1)


def _prior(labels: Tensor, one: int) -> Tensor:
    return (labels == one).double().mean().log()


def _share(logits: Tensor, truth: Tensor) -> float:
    return round(float((logits.argmax(dim=1) == truth).double().mean()), 4)


if __name__ == "__main__":
    main()
