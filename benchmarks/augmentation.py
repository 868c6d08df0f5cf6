"""What augmentation costs: the time that it adds to a batch, as a share of a training step.

    python benchmarks/augmentation.py

Each figure is the fastest of 60, on one core.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedistill.config.training import Augment, OptimizerConfig
from fedistill.models.registry import build_model
from fedistill.models.signature import Signature
from fedistill.training.augmentation import augmentation
from fedistill.training.loop import batch
from fedistill.training.optimizers import make_optimizer

GREY = Signature("image", (1, 28, 28), 10, 0)
COLOUR = Signature("image", (3, 32, 32), 10, 0)
TEXT = Signature("text", (64,), 5, 4000)
OF_IMAGES = {
    "flip": Augment(flip=True),
    "crop": Augment(crop=4),
    "erase": Augment(erase=0.5),
    "all": Augment(flip=True, crop=4, erase=0.5),
}
OF_TEXTS = {"drop_words": Augment(drop_words=0.1)}
CASES = (("cnn-s", GREY), ("cnn-s", COLOUR), ("bag", TEXT), ("textcnn", TEXT))
TIMES = 60


def main() -> None:
    torch.set_num_threads(1)
    for name, signature in CASES:
        inputs = _samples(signature)
        step = _fastest(_training_step(name, signature, inputs))
        plain = _fastest(lambda inputs=inputs: batch(inputs, torch.arange(len(inputs))))
        print(f"{name}, {len(inputs)} samples of {signature.shape}: {1000 * step:.2f} ms for a step")
        for what, settings in (OF_IMAGES if signature.kind == "image" else OF_TEXTS).items():
            change = augmentation(settings, torch.Generator().manual_seed(0))
            every = torch.arange(len(inputs))
            added = _fastest(lambda i=inputs, e=every, c=change: batch(i, e, c)) - plain
            print(f"  {what}: {1000 * added:.3f} ms more, {added / step:.1%} of a step")


def _samples(signature: Signature) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if signature.kind == "image":
        return torch.randint(0, 256, (32, *signature.shape), generator=generator).to(torch.uint8)
    return torch.randint(1, 4000, (16, *signature.shape), generator=generator).to(torch.int32)


def _training_step(name: str, signature: Signature, inputs: Tensor) -> Callable[[], object]:
    model = build_model(name, signature, seed=0, client=0).train()
    optimizer = make_optimizer(OptimizerConfig(name="sgd", lr=0.01, momentum=0.9), model)
    every = torch.arange(len(inputs))
    labels = every % signature.classes

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(batch(inputs, every)), labels).backward()
        optimizer.step()

    return step


def _fastest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several times."""
    found = []
    for _ in range(TIMES):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


if __name__ == "__main__":
    main()
