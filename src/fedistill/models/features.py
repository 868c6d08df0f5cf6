"""A model's features: what its head, the last linear layer, makes the logits of.

Nothing is asked of a model but that its logits are what one `nn.Linear` gives. Which one is found by running
the model once; a hook then reads what goes in. Dropout right before the head is left out of the features,
so that they are the same while training.
"""

import functools

import torch
from torch import Tensor, nn

from fedistill.errors import Refusal
from fedistill.models import registry as models
from fedistill.models.signature import Signature

_DROPOUTS = nn.Dropout | nn.AlphaDropout


class Split(nn.Module):
    """A model of which the features can be had: `features` holds those (n, d) of the last forward pass."""

    def __init__(self, model: nn.Module, name: str, signature: Signature) -> None:
        """``name`` and ``signature`` are those that the model was built by.

        Raises:
            Refusal: the model has no head.
        """
        super().__init__()
        head, entry = _places(name, signature)
        self.model = model
        self._head, self._entry = head, entry
        self.features = torch.empty(0)

    @property
    def head(self) -> nn.Linear:
        found = self.model.get_submodule(self._head)
        assert isinstance(found, nn.Linear)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.features = given[0]

        # The model is lent: other users of it must find no hook.
        handle = self.model.get_submodule(self._entry).register_forward_pre_hook(keep)
        try:
            logits: Tensor = self.model(inputs)
        finally:
            handle.remove()
        return logits


def width(name: str, signature: Signature) -> int:
    """Length d of a model's features.

    Raises:
        Refusal: the model has no head.
    """
    return Split(models.reusable(name, signature), name, signature).head.in_features


@functools.lru_cache(maxsize=32)
def _places(name: str, signature: Signature) -> tuple[str, str]:
    """Names of the head, and of the layer whose input are the features: the head, or dropout before it."""
    model = models.build_model(name, signature, seed=0, client=0).eval()
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = []
    for place, module in model.named_modules():
        if isinstance(module, nn.Linear | _DROPOUTS):

            def keep(
                module: nn.Module, given: tuple[Tensor, ...], output: Tensor, place: str = place
            ) -> None:
                calls.append((place, module, given[0], output))

            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        logits = model(_noise(signature))
    for handle in handles:
        handle.remove()
    heads = [call for call in calls if isinstance(call[1], nn.Linear) and _same(call[3], logits)]
    if not heads or sum(place == heads[-1][0] for place, *_ in calls) > 1:
        raise Refusal(
            f"model {name!r} has no head: its logits must be what one nn.Linear gives, which is called once;"
            " end its forward in one, without a softmax or a sum behind it"
        )
    head, module, features, _ = heads[-1]
    if features.dim() != 2 or not torch.equal(module(features), logits):
        raise Refusal(
            f"model {name!r}: its last linear layer {head!r} must take one vector a sample, but takes"
            f" {tuple(features.shape)} for {len(logits)} samples: pool or flatten before it"
        )
    last = {place: output for place, part, _, output in calls if isinstance(part, _DROPOUTS)}
    before = [place for place, output in last.items() if output is features]
    return head, before[0] if before else head


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left, right)


def _noise(signature: Signature) -> Tensor:
    """Three samples that differ: blank ones could make unlike layers agree."""
    generator = torch.Generator().manual_seed(0)
    if signature.kind == "image":
        return torch.rand(3, *signature.shape, generator=generator) * 2 - 1
    return torch.randint(1, signature.vocabulary, (3, *signature.shape), generator=generator)
