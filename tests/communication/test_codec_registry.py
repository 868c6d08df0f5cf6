"""How an experiment file names codecs, and what is said of names that are wrong."""

import inspect
from typing import Any

import pytest

from fedistill.communication.codecs.base import Codec
from fedistill.communication.codecs.registry import CODECS, create_codec, pair, resolved, title
from fedistill.communication.tensor_specs import Content
from fedistill.config.schema import Arm, Section
from fedistill.errors import ExperimentError
from fedistill.federation.arm import resolve_arm as resolved_arm

every = pytest.mark.parametrize("name", CODECS)


def refusal(wanted: Any) -> str:
    with pytest.raises(ExperimentError) as caught:
        pair(wanted)
    return str(caught.value)


def settings(name: str) -> dict[str, Any]:
    """A codec's settings at their defaults, without those that are not set."""
    return CODECS[name].Settings().model_dump(exclude_none=True)


@every
def test_each_codec_says_what_it_is(name: str) -> None:
    kind = CODECS[name]
    assert kind.name == name
    assert inspect.getdoc(kind)
    assert kind.lossiness
    assert "\n" not in kind.lossiness
    assert not kind.lossiness.endswith(".")
    assert kind.codes
    ours = [one for one in kind.__subclasses__() if one.__module__.startswith("fedistill.")]
    assert not ours, "codecs are final"
    for key, field in kind.Settings.model_fields.items():
        assert field.description or key in ("name",), f"{name}.{key} has no description"


@every
def test_only_what_sends_weights_is_relative(name: str) -> None:
    """Else a reference would be kept for tensors that have none; and a residual is of a difference."""
    kind = CODECS[name]
    if kind.relative:
        assert kind.codes == {Content.WEIGHTS}
    if kind.keeps:
        assert kind.relative


@every
def test_a_name_alone_and_a_table_of_it_are_the_same(name: str) -> None:
    codec = create_codec(name)
    assert type(codec) is CODECS[name]
    assert codec.settings == create_codec({"name": name}).settings == CODECS[name].Settings()


@every
def test_a_codec_for_both_ways_or_for_each(name: str) -> None:
    up, down = pair(name)
    assert up is not down
    assert type(up) is type(down) is CODECS[name]
    up, down = pair({"up": name, "down": "fp32"})
    assert [type(codec) for codec in (up, down)] == [CODECS[name], CODECS["fp32"]]


@every
def test_settings_are_read_and_written_out(name: str) -> None:
    expected = {"name": name, **settings(name)} if settings(name) else name
    assert resolved(name) == expected
    assert resolved({"up": name, "down": name}) == expected
    other = "fp16" if name == "fp32" else "fp32"
    assert resolved({"up": name, "down": other}) == {"up": expected, "down": other}


@every
def test_what_was_written_out_is_read_as_the_same(name: str) -> None:
    for wanted in (name, {"up": "fp32", "down": name}):
        again = resolved(resolved(wanted))
        assert again == resolved(wanted)
        for one, other in zip(pair(wanted), pair(resolved(wanted)), strict=True):
            assert (type(one), one.settings) == (type(other), other.settings)


@every
def test_a_title_names_what_is_not_as_usual(name: str) -> None:
    assert title(name) == title(resolved(name)) == name
    assert title({"up": name, "down": name}) == name
    other = "fp16" if name == "fp32" else "fp32"
    assert title({"up": name, "down": other}) == f"up {name}, down {other}"


class ToySettings(Section):
    levels: int = 15
    share: float | None = None


class Toy(Codec):
    name = "toy"
    lossiness = "nothing"
    Settings = ToySettings

    def encode(self, *_: Any) -> Any:
        raise NotImplementedError

    def decode(self, *_: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plain codecs and a toy, whatever else there is."""
    for name in list(CODECS):
        if name not in ("fp32", "fp16"):
            monkeypatch.delitem(CODECS, name)
    monkeypatch.setitem(CODECS, "toy", Toy)


@pytest.mark.usefixtures("toy")
def test_titles_and_tables_by_hand() -> None:
    changed = {"name": "toy", "levels": 3}
    assert create_codec(changed).settings == ToySettings(levels=3)
    assert title(changed) == "toy(levels=3)"
    assert title({"name": "toy", "levels": 15}) == "toy"
    assert title({"name": "toy", "levels": 3, "share": 0.5}) == "toy(levels=3, share=0.5)"
    assert title({"up": changed, "down": "fp16"}) == "up toy(levels=3), down fp16"
    assert title({"up": changed, "down": "toy"}) == "up toy(levels=3), down toy"
    assert resolved("toy") == {"name": "toy", "levels": 15}
    assert resolved({"up": changed, "down": "fp16"}) == {"up": changed, "down": "fp16"}
    assert resolved({"up": changed, "down": changed}) == changed


FORMS = "write a name, NAME(SETTING=VALUE), { name = NAME, SETTING = VALUE }, or { up = CODEC, down = CODEC }"
NAMES = "fp32, fp16, toy or module:Class"
MISTAKES: dict[str, tuple[Any, str]] = {
    "name": ("pf16", f"codec 'pf16' is not one of {NAMES}. Did you mean 'fp16'?"),
    "far name": ("zip", f"codec 'zip' is not one of {NAMES}."),
    "no name": ({"name": None}, f"codec None is not one of {NAMES}."),
    "number": ({"name": 16}, f"codec 16 is not one of {NAMES}."),
    "in a table": ({"name": "tyo", "levels": 3}, f"codec 'tyo' is not one of {NAMES}. Did you mean 'toy'?"),
    "one way": ({"up": "fp32", "down": "fb32"}, f"codec 'fb32' is not one of {NAMES}. Did you mean 'fp32'?"),
    "up alone": ({"up": "fp32"}, f"codec {{'up': 'fp32'}}: {FORMS}"),
    "three ways": (
        {"up": "fp32", "down": "fp32", "side": "fp32"},
        f"codec {{'up': 'fp32', 'down': 'fp32', 'side': 'fp32'}}: {FORMS}",
    ),
    "no table": ({}, f"codec {{}}: {FORMS}"),
    "settings alone": ({"levels": 3}, f"codec {{'levels': 3}}: {FORMS}"),
    "setting": (
        {"name": "toy", "level": 3},
        "codec toy: unknown key `level`. Did you mean 'levels'? Settings: levels, share",
    ),
    "far setting": (
        {"name": "toy", "colour": 3},
        "codec toy: unknown key `colour`. Settings: levels, share",
    ),
    "setting of none": ({"name": "fp32", "levels": 3}, "codec fp32: unknown key `levels`. Settings: none"),
    "both forms": (
        {"name": "toy", "up": "fp32", "down": "fp32"},
        "codec toy: unknown key `up`. Settings: levels, share",
    ),
}


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named(case: str) -> None:
    wanted, said = MISTAKES[case]
    assert refusal(wanted) == said


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("value", ["three", [3], None, 2.5])
def test_a_value_of_another_type_is_named_with_its_setting(value: Any) -> None:
    said = refusal({"up": "fp32", "down": {"name": "toy", "levels": value}})
    assert said.startswith("codec toy")
    assert "levels" in said
    assert "\n" not in said


@pytest.mark.usefixtures("toy")
def test_an_arm_is_named_with_the_mistake_in_its_codec() -> None:
    with pytest.raises(ExperimentError) as caught:
        resolved_arm(arm(codec="pf16"))
    assert str(caught.value) == f"arm 'mine': codec 'pf16' is not one of {NAMES}. Did you mean 'fp16'?"


def test_an_arm_without_a_codec_has_its_methods() -> None:
    assert resolved_arm(arm()).codec == "fp32"
    assert resolved_arm(arm(codec="fp16")).codec == "fp16"


def arm(**more: Any) -> Arm:
    models = {"clients": ["mlp-s"], "server": "mlp-s"}
    return Arm.model_validate({"method": "fedavg", "name": "mine", "models": models, "train": {}, **more})


SPELLED: dict[str, dict[str, Any]] = {
    "int8(coded=False)": {"name": "int8", "coded": False},
    "qsgd(levels=1)": {"name": "qsgd", "levels": 1},
    "qsgd(levels=3, bucket=512, norm=l2, bound=0.2)": {
        "name": "qsgd",
        "levels": 3,
        "bucket": 512,
        "norm": "l2",
        "bound": 0.2,
    },
    "dadaquant(first=2, client_adaptive=False)": {"name": "dadaquant", "first": 2, "client_adaptive": False},
    "top-k(share=0.05, values=int8)": {"name": "top-k", "share": 0.05, "values": "int8"},
    "stc(share=0.1, scope=all)": {"name": "stc", "share": 0.1, "scope": "all"},
    "low-rank(energy=0.5, levels=7)": {"name": "low-rank", "energy": 0.5, "levels": 7},
    "onehot(coder=delta)": {"name": "onehot", "coder": "delta"},
    "simplex(bits=3)": {"name": "simplex", "bits": 3},
    "log-probs(bits=6)": {"name": "log-probs", "bits": 6},
    "top-classes(k=5)": {"name": "top-classes", "k": 5},
}


@pytest.mark.parametrize("spelled", SPELLED)
def test_what_tables_print_is_read_as_the_same(spelled: str) -> None:
    table = SPELLED[spelled]
    assert title(table) == spelled
    assert create_codec(spelled).settings == create_codec(table).settings
    assert resolved(spelled) == resolved(table)
    assert title(spelled) == spelled
    both = {"up": spelled, "down": "fp16"}
    if table["name"] != "fp16":
        assert title(both) == f"up {spelled}, down fp16"
        assert resolved(title(both)) == resolved(both)


def test_every_codec_with_settings_has_a_spelling_in_the_table() -> None:
    with_settings = {name for name, kind in CODECS.items() if kind.Settings.model_fields}
    assert {table["name"] for table in SPELLED.values()} == with_settings


def test_other_spellings_of_the_same() -> None:
    expected = create_codec({"name": "int8", "coded": False}).settings
    for spelled in ("int8( coded = false )", " int8 (coded=False,)"):
        assert create_codec(spelled).settings == expected
    assert create_codec("qsgd(bucket=None)").settings == create_codec("qsgd").settings
    assert create_codec("qsgd()").settings == create_codec("qsgd").settings
    assert create_codec('qsgd(norm="l2")').settings == create_codec({"name": "qsgd", "norm": "l2"}).settings


MALFORMED = {
    "qsgd(levels=1": "the brackets do not enclose the settings of one name",
    "qsgd levels=1)": "the brackets do not enclose the settings of one name",
    "(levels=1)": "the brackets do not enclose the settings of one name",
    "qsgd(1)": "`1` is not SETTING=VALUE",
    "qsgd(levels=)": "`levels=` is not SETTING=VALUE",
    "qsgd(levels=1, bucket)": "`bucket` is not SETTING=VALUE",
    "qsgd(levels=(1))": "`levels=(1)` is not SETTING=VALUE",
    "qsgd(levels=1, levels=2)": "`levels` is set twice",
}


@pytest.mark.parametrize("spelled", MALFORMED)
def test_a_malformed_spelling_is_named(spelled: str) -> None:
    said = refusal(spelled)
    assert said.startswith(f"codec {spelled!r}: {MALFORMED[spelled]}; write a name, or a name with settings")
    assert refusal({"up": spelled, "down": "fp16"}) == said


def test_a_wrong_setting_in_brackets_is_named_as_in_a_table() -> None:
    assert "unknown key `level`. Did you mean 'levels'?" in refusal("qsgd(level=1)")
    assert refusal("qsgd(levels=many)").startswith("codec qsgd")
    assert refusal("qsgb(levels=1)").endswith("Did you mean 'qsgd'?")


def test_an_arm_takes_the_spelling() -> None:
    expected = resolved_arm(arm(codec={"name": "qsgd", "levels": 1})).codec
    assert resolved_arm(arm(codec="qsgd(levels=1)")).codec == expected
