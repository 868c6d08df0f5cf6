"""A model's features: the input of its head, the last linear layer, which computes the logits.

A model only has to compute its logits with one `nn.Linear`. It is found by running the model once; a hook
then records its input. If dropout comes right before the head, the features are the dropout's input, so that
they are deterministic in training too.
"""

import functools

import torch
from torch import Tensor, nn

from fedistill.errors import Refusal
from fedistill.models import registry as models
from fedistill.models.signature import Signature

_DROPOUTS = nn.Dropout | nn.AlphaDropout


class Split(nn.Module):
    """A model that exposes its features: `features` holds those (n, d) of the last forward pass."""

    def __init__(self, model: nn.Module, name: str, signature: Signature) -> None:
        """Wrap a model that was built with this name and signature.

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

        # The module is shared: its other users must not find the hook.
        handle = self.model.get_submodule(self._entry).register_forward_pre_hook(keep)
        try:
            logits: Tensor = self.model(inputs)
        finally:
            handle.remove()
        return logits


def width(name: str, signature: Signature) -> int:
    """Return the width d of a model's features.

    Raises:
        Refusal: the model has no head.
    """
    return Split(models.reusable(name, signature), name, signature).head.in_features


@functools.lru_cache(maxsize=32)
def _places(name: str, signature: Signature) -> tuple[str, str]:
    """Return the names of the head and of the layer that takes the features: head, or dropout before it."""
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
            f"model {name!r} has no head: its logits must be the output of one nn.Linear that is called once;"
            " end its forward with one, without a softmax or a sum after it"
        )
    head, module, features, _ = heads[-1]
    if features.dim() != 2 or not torch.equal(module(features), logits):
        raise Refusal(
            f"model {name!r}: its last linear layer {head!r} must take one vector per sample, but takes"
            f" {tuple(features.shape)} for {len(logits)} samples: pool or flatten before it"
        )
    last = {place: output for place, part, _, output in calls if isinstance(part, _DROPOUTS)}
    before = [place for place, output in last.items() if output is features]
    return head, before[0] if before else head


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left, right)


def _noise(signature: Signature) -> Tensor:
    """Return three different samples: with blank ones, different layers could have equal outputs."""
    generator = torch.Generator().manual_seed(0)
    if signature.kind != "text":
        return torch.rand(3, *signature.shape, generator=generator) * 2 - 1
    return torch.randint(1, signature.vocabulary, (3, *signature.shape), generator=generator)
