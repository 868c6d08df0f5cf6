"""Pretrained networks as models of a task: its token ids or pixels in, one logit per class out."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedistill.config.hf import HfModel
from fedistill.errors import ExperimentError
from fedistill.models.huggingface.folder import PIXELS, folder_of, tokenizer_file
from fedistill.models.huggingface.library import (
    Loaded,
    check_installed,
    from_folder,
    from_recipe,
    train_only_the_new,
)
from fedistill.models.huggingface.pixels import Pixels
from fedistill.models.huggingface.recipe import Recipe, recipe_of
from fedistill.models.signature import Preprocessing, Signature
from fedistill.training.cost import uncounted

_MOST_REMEMBERED = 100_000
"""Texts whose features a process keeps, of 1.5 kB each where they have 384 numbers."""


class Pretrained(nn.Module):
    """A network of transformers, with the recipe that builds it.

    Dropout of a frozen encoder is off and its running statistics stand still, in training too.
    """

    def __init__(self, recipe: Recipe, network: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.recipe, self.network = recipe, network
        self.pixels = None if recipe.pixels is None else Pixels(recipe.pixels, _channels(network))
        self.head = None if recipe.pooling is None else nn.Linear(_width(network), signature.classes)
        self._features: dict[bytes, Tensor] = {}
        # Torch leaves this untyped.
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]  # torch
            lambda module, _: module._features.clear()
        )

    @property
    def encoder(self) -> nn.Module:
        """All but the head."""
        return self.network if self.head is not None else self.network.base_model  # type: ignore[return-value]  # a module

    def train(self, mode: bool = True) -> "Pretrained":
        super().train(mode)
        if self.recipe.fixes_encoder:
            self.encoder.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        if self.head is not None:
            vectors = self._remembered(inputs) if self._is_fixed() else self._sentences(inputs)
            logits: Tensor = self.head(vectors)
            return logits
        given = self._tokens(inputs) if self.pixels is None else {"pixel_values": self.pixels(inputs)}
        found: Tensor = self.network(**given).logits
        return found

    def _tokens(self, ids: Tensor) -> dict[str, Tensor]:
        padding = ids == 0
        pad = getattr(self.network.config, "pad_token_id", None) or 0
        return {
            "input_ids": torch.where(padding, pad, ids - self.recipe.shift),
            "attention_mask": (~padding).long(),
        }

    def _sentences(self, ids: Tensor) -> Tensor:
        """Return one vector per text (n, d)."""
        hidden = self.network(**self._tokens(ids)).last_hidden_state
        if self.recipe.pooling == "cls":
            found = hidden[:, 0]
        else:
            kept = (ids != 0).unsqueeze(2).to(hidden.dtype)
            found = (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        return normalize(found, dim=1) if self.recipe.normalised else found

    def _is_fixed(self) -> bool:
        """Return whether a text's vector never changes; an exported program computes it all the same."""
        return self.recipe.fixes_encoder and not torch.compiler.is_compiling()

    @torch.no_grad()
    def _remembered(self, ids: Tensor) -> Tensor:
        """Return the vectors of texts, each computed once in a process.

        They are computed alone and without padding, so that they do not depend on the rest of the batch.
        """
        rows = []
        for row in ids.cpu():
            key = row.numpy().tobytes()
            found = self._features.get(key)
            if found is None:
                with uncounted():
                    (found,) = self._sentences(row[: int(row.nonzero().max()) + 1][None].to(ids.device)).cpu()
                if len(self._features) < _MOST_REMEMBERED:
                    self._features[key] = found
            rows.append(found)
        return torch.stack(rows).to(ids.device)


def build_hf(name: str, signature: Signature) -> Pretrained:
    """Build a model by ``hf:NAME`` with the weights of its file; a head that it lacks is drawn.

    Raises:
        ExperimentError: a package or a file is missing, or the model is not for this task.
    """
    model = HfModel.read(name)
    check_installed(name)
    folder = folder_of(name)
    recipe = recipe_of(model, folder, signature)
    _check_texts(recipe, signature, name)
    loaded = from_folder(recipe, signature, folder, model.name)
    return _assembled(recipe, loaded, signature, name)


def build_recipe(recipe: Recipe, signature: Signature, name: str) -> Pretrained:
    """Build the network of a saved model, with any weights.

    Raises:
        ExperimentError: a package is missing, or the recipe is not one of transformers.
    """
    check_installed(name)
    network = from_recipe(recipe, signature, name)
    return _assembled(recipe, Loaded(network, frozenset()), signature, name)


def _assembled(recipe: Recipe, loaded: Loaded, signature: Signature, name: str) -> Pretrained:
    if not recipe.trains_encoder:
        train_only_the_new(loaded, recipe, name)
    return Pretrained(recipe, loaded.network, signature)


def hf_preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing of a model by ``hf:NAME``: its tokenizer, if it has one.

    Raises:
        ExperimentError: its folder is missing.
    """
    folder = folder_of(name)
    if (folder / PIXELS).is_file():
        return Preprocessing()
    return Preprocessing(tokenizer=str(tokenizer_file(folder, name)), length=HfModel.read(name).length)


def _check_texts(recipe: Recipe, signature: Signature, name: str) -> None:
    """See that a network has a vector for each token and place."""
    if signature.kind == "image":
        return
    (length,) = signature.shape
    places = recipe.config.get("max_position_embeddings")
    if isinstance(places, int) and length > places:
        raise ExperimentError(
            f"model {name!r} reads {places} tokens at most, but texts have {length}: lower task.text.length,"
            " or set `length` of the model"
        )
    words = recipe.config.get("vocab_size")
    if isinstance(words, int) and signature.vocabulary - recipe.shift > words:
        raise ExperimentError(
            f"model {name!r}: its tokenizer has {signature.vocabulary - recipe.shift:,} tokens, but its"
            f" config.json {words:,}: take the tokenizer that belongs to it"
        )


def _channels(network: nn.Module) -> int:
    return int(getattr(network.config, "num_channels", 3))


def _width(network: nn.Module) -> int:
    return int(network.config.hidden_size)  # type: ignore[union-attr,arg-type]  # of transformers
