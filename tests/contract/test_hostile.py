"""What a lying client may send of every method: it alone is left out, and the reason says what it sent."""

from functools import lru_cache

import pytest
import torch
from hostile import WITH_UPLINK, check

from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.classwise import ClassOutputs, Prototypes
from fedistill.communication.protocol.value_checks import check_direction, check_growth, check_values
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import FrameError, TrainingError
from fedistill.methods.registry import METHODS
from fedistill.methods.shared.prototypes import out_of_scale
from helpers.lies import (
    ALWAYS_TAKEN,
    INTEGERS,
    LIAR,
    Scene,
    count_lies,
    doubtful_frames,
    doubtful_lies,
    frame_lies,
    number_lies,
    value_lies,
)
from helpers.method_rows import Row


@pytest.mark.parametrize("row", WITH_UPLINK, ids=lambda row: row.name)
def test_a_liar_is_left_out_and_named(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(row, monkeypatch)
    honest = scene.sent[LIAR]
    assert not scene.refused(honest.frame)
    lies = [*frame_lies(scene), *number_lies(honest), *value_lies(honest), *count_lies(honest)]
    assert len(lies) >= 6
    for name, lie in lies:
        found = scene.refused(lie)
        assert list(found) == [LIAR], f"{name}: {found or 'accepted'}"
        assert found[LIAR].startswith("its reply is refused: "), name


ROUNDS_BEFORE_INTEGERS = {"tally-like": 0, "fedgkt": 0, "bridge": 2}
"""After so many rounds these send votes, classes, and changes of weights; else one round goes before."""
CELLS = [
    (row, lie)
    for row in WITH_UPLINK
    if row.variant in ("", "-started")
    for lie in doubtful_lies(METHODS[row.method].uplink)
]


@lru_cache(maxsize=1)
def scene_of(name: str, before: int | None) -> Scene:
    (row,) = (row for row in WITH_UPLINK if row.name == name)
    with pytest.MonkeyPatch.context() as patch:
        return Scene(row, patch, before)


@pytest.mark.parametrize(
    ("row", "lie"), [pytest.param(row, lie, id=f"{row.name}-{lie}") for row, lie in CELLS]
)
def test_what_could_be_true_is_learned_from(row: Row, lie: str) -> None:
    """Or it is refused, and its sender named: it neither ends the run nor leaves NaN or infinite numbers."""
    scene = scene_of(row.name, ROUNDS_BEFORE_INTEGERS.get(row.name) if lie in INTEGERS else None)
    frames = dict(doubtful_frames(scene.sent[LIAR], lie))
    assert frames
    for name, frame in frames.items():
        found = scene.refused(frame)
        if not found:
            assert scene.learn_from(frame).keys() <= {LIAR}, name
            continue
        logits_of_zero = row.method == "fedmd" and lie == "zero rows"
        assert lie not in ALWAYS_TAKEN or logits_of_zero, f"{name}: {found}"
        assert list(found) == [LIAR], name
        assert found[LIAR].startswith("its reply is refused: "), name


@pytest.mark.parametrize("name", ["dsfl", "fedavg", "fedproto", "bridge"])
def test_random_lies_are_refused_or_taken(name: str) -> None:
    """The short form of ``make hostile``."""
    (row,) = (row for row in WITH_UPLINK if row.name == name)
    counts = check(row, cases=40, seed=7)
    assert counts["refused"] + counts["taken"] == 40
    assert min(counts["refused"], counts["taken"], counts["learned from"]) > 0


def test_what_is_said_of_numbers() -> None:
    def said(content: Content, *rows: list[float]) -> str:
        values = torch.tensor(rows).numpy()
        with pytest.raises(FrameError) as caught:
            check_values(values, TensorSpec(content, values.shape))
        return str(caught.value)

    assert (
        said(Content.PROBS, [0.5, 0.5], [0.5, 0.6])
        == "it has rows of probabilities that add up to 1.1, not to 1"
    )
    assert said(Content.PROBS, [1.5, -0.5]) == "it has a probability of -0.5"
    assert said(Content.PROBS, [float("nan"), 1.0]) == "it has numbers that are NaN or infinite"
    assert said(Content.SCORES, [2e6, 0.0]) == "it has a number of size 2e+06; 1e+06 is the most"
    check_values(torch.tensor([[0.996, 0.0], [0.3, 0.7]]).numpy(), TensorSpec(Content.PROBS, (2, 2)))
    with pytest.raises(FrameError, match="its weights have a root mean square of 50; 20 is the most here"):
        check_growth(torch.full((4,), 50.0).numpy(), sent=0.2)
    check_growth(torch.full((4,), 9.9).numpy(), sent=0.0)


def test_what_is_said_of_weights_that_are_turned_around() -> None:
    for factor in (-1, 0):  # chance and rounding alone could do it
        check_direction(factor * torch.ones(99).numpy(), torch.ones(99).numpy())
    sent = torch.ones(400).numpy()
    check_direction(sent, torch.zeros(400).numpy())
    turned = sent.copy()
    turned[:299] = -1  # a cosine of -(299 - 101) / 400
    check_direction(turned, sent)
    turned[:301] = -1
    with pytest.raises(FrameError, match=r"point against those that it was sent \(cosine -0\.5"):
        check_direction(turned, sent)
    check_direction(1e-30 * sent, 1e-30 * sent)
    with pytest.raises(FrameError, match=r"cosine -1\.00"):
        check_direction(-1e-30 * sent, sent)
    with pytest.raises(FrameError, match="its weights are all 0"):
        check_direction(0 * sent, sent)


def test_weights_that_are_turned_around_are_believed_if_most_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent is then wrong, and training turns it back."""
    (row,) = (row for row in WITH_UPLINK if row.name == "fedavg")
    scene = Scene(row, monkeypatch)
    turned = {client: dict(value_lies(sent))["values negative"] for client, sent in scene.sent.items()}
    assert sorted(turned) == [0, 1, 2, 3]

    def answered(*clients: int) -> tuple[list[int], dict[int, str]]:
        return scene.answered({client: turned[client] for client in clients})

    came, refused = answered(0, 1)
    assert (came, list(refused)) == ([2, 3], [0, 1])
    assert "and those of most clients do not" in refused[1]
    assert answered(0, 1, 2) == ([3, 0, 1, 2], {}), "they come last"
    assert answered(0, 1, 2, 3) == ([0, 1, 2, 3], {})


def test_a_model_is_turned_back_by_those_who_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of another architecture, which was sent right, do not outvote them."""
    (row,) = (row for row in WITH_UPLINK if row.name == "feddf")
    scene = Scene(row, monkeypatch)
    names = [scene.arm.travelling(client) for client in sorted(scene.sent)]
    assert names == ["cnn-s", "mlp-s", "cnn-s", "mlp-s"]
    turned = {client: dict(value_lies(sent))["values negative"] for client, sent in scene.sent.items()}
    assert scene.answered({1: turned[1], 3: turned[3]}) == ([0, 2, 1, 3], {})
    came, refused = scene.answered({0: turned[0], 3: turned[3]})
    assert (came, list(refused)) == ([1, 2], [0, 3])


def test_prototypes_out_of_scale_are_those_of_the_few() -> None:
    def found(*sizes: float | None) -> dict[int, str]:
        """Who is out of scale, if clients send one prototype of this size each, or none."""
        sent = {
            client: Prototypes.of(torch.full((1, 2), size or 0.0), torch.tensor([size is not None]))
            for client, size in enumerate(sizes)
        }
        return out_of_scale(sent)

    assert found(1.0, 99.0, 0.0) == {}
    assert found(1.0, 200.0) == {}
    assert found(0.0, 0.0, 5.0) == {}
    assert found(None, None, None) == {}
    assert found(1e-9, 1e-9, 1.0, 1.2) == {}, "nobody is left out for being as long as half of all"
    assert found(1.0, 2.0, 400.0, 3.0) == {2: "its prototypes are 133 times as long as the median client's"}
    for nothing in (None, 0.0):
        assert [*found(1.0, nothing, 1000.0, 1.0)] == [2]
        assert [*found(nothing, 1.0, 1000.0, 1.0)] == [2]


def test_who_is_left_out_beside_the_others_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = (row for row in WITH_UPLINK if row.name == "fedproto")
    scene = Scene(row, monkeypatch)
    (lie,) = (frame for _, frame in doubtful_frames(scene.sent[LIAR], "x 1000"))
    found = scene.learn_from(lie)
    assert list(found) == [LIAR]
    assert found[LIAR].startswith("its reply is left out: its prototypes are ")
    assert scene.learn_from(scene.sent[LIAR].frame) == {}
    with pytest.raises(
        TrainingError, match=r"3 of 4 clients sent a valid reply, but flower\.quorum asks for 4"
    ):
        scene.learn_from(lie, quorum=1.0)


def test_mean_probabilities_a_thousand_times_too_large_are_refused() -> None:
    (spec,) = ClassOutputs.specs(MessageContext(classes=2), {}).values()
    honest = torch.tensor([[0.9, 0.1], [0.0, 0.0]]).numpy()
    check_values(honest, spec)
    with pytest.raises(FrameError, match="it has a number of size 900; 100 is the most"):
        check_values(honest * 1000, spec)
