"""What a lying client may send of every method: it alone is left out, and the reason says what it sent."""

import pytest
import torch
from hostile import WITH_UPLINK, check

from fedistill.communication.messages.base import MessageContext
from fedistill.communication.messages.classwise import ClassOutputs
from fedistill.communication.protocol.value_checks import check_growth, check_values
from fedistill.communication.tensor_specs import Content, TensorSpec
from fedistill.errors import FrameError
from helpers.lies import LIAR, Scene, frame_lies, number_lies, value_lies
from helpers.method_rows import Row


@pytest.mark.parametrize("row", WITH_UPLINK, ids=lambda row: row.name)
def test_a_liar_is_left_out_and_named(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(row, monkeypatch)
    honest = scene.sent[LIAR]
    assert not scene.refused(honest.frame)
    lies = [*frame_lies(scene), *number_lies(honest), *value_lies(honest)]
    assert len(lies) >= 6
    for name, lie in lies:
        found = scene.refused(lie)
        assert list(found) == [LIAR], f"{name}: {found or 'accepted'}"
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


def test_mean_probabilities_a_thousand_times_too_large_are_refused() -> None:
    (spec,) = ClassOutputs.specs(MessageContext(classes=2), {}).values()
    honest = torch.tensor([[0.9, 0.1], [0.0, 0.0]]).numpy()
    check_values(honest, spec)
    with pytest.raises(FrameError, match="it has a number of size 900; 100 is the most"):
        check_values(honest * 1000, spec)
