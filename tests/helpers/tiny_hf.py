"""Tiny models of transformers with drawn weights, saved as from_pretrained wants them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from fedistill.models.huggingface.library import quietly

_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def save_tokenizer(folder: Path, words: Sequence[str], first: Sequence[str] = ("[PAD]", "[UNK]")) -> int:
    """Write a tokenizer of whole words, between [CLS] and [SEP]; return the number of its tokens."""
    names = [*first, "[CLS]", "[SEP]", *words]
    places = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(places, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, places[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return len(names)


def save_bert(folder: Path, words: Sequence[str], kind: str = "Bert", head: int | None = None) -> Path:
    """Write an encoder, or a classifier of ``head`` classes, with its tokenizer.

    Args:
        kind: ``Bert``, ``DistilBert`` or ``Roberta``, whose padding is token 1.
    """
    folder.mkdir(parents=True)
    first = ("[UNK]", "[PAD]") if kind == "Roberta" else ("[PAD]", "[UNK]")
    size = save_tokenizer(folder, words, first)
    settings: dict[str, Any] = {"vocab_size": size, "max_position_embeddings": 40}
    settings |= {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2} if kind == "DistilBert" else _SMALL
    config = getattr(transformers, f"{kind}Config")(**settings, pad_token_id=first.index("[PAD]"))
    if head is not None:
        config.num_labels = head
    name = "Model" if head is None else "ForSequenceClassification"
    return _save(getattr(transformers, kind + name), config, folder)


def save_sentence_encoder(folder: Path, words: Sequence[str], mode: str = "mean") -> Path:
    """Write an encoder as sentence-transformers does: a mean or the first token, then length 1."""
    save_bert(folder, words)
    parts = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": path, "idx": place, "name": str(place)}
        for place, (kind, path) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    chosen = {"pooling_mode_mean_tokens": mode == "mean", "pooling_mode_cls_token": mode == "cls"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **chosen}))
    return folder


def save_vit(folder: Path, side: int = 16) -> Path:
    """Write a vision transformer for RGB images of this side, and its image processor."""
    folder.mkdir(parents=True)
    config = transformers.ViTConfig(**_SMALL, image_size=side, patch_size=side // 2)
    processor = {
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
        "image_processor_type": "ViTImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return _save(transformers.ViTModel, config, folder)


def save_resnet(folder: Path) -> Path:
    """Write a ResNet with batch norm, whose processor scales the shorter side and cuts out the middle."""
    folder.mkdir(parents=True)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_channels=3
    )
    processor = {
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 16, "width": 16},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return _save(transformers.ResNetModel, config, folder)


def _save(network: Callable[[Any], Any], config: Any, folder: Path) -> Path:
    with quietly(), torch.random.fork_rng():
        torch.manual_seed(0)
        network(config).save_pretrained(folder)
    return folder
