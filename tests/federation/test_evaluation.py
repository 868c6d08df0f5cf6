"""The views, worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedistill.federation.evaluation import views
from fedistill.federation.scores import Answers


def counts(*values: int) -> Tensor:
    return torch.tensor(values)


# 4 test samples of class 0, 6 of class 1; class 2 is not tested.
TEST = counts(4, 6, 0)
# Client 0: 3 of class 0 and 1 of class 1. Client 1: 2 of class 1 and 8 of the untested class 2.
PRIVATE = torch.tensor([[3, 1, 0], [0, 2, 8]])
SERVER = counts(3, 5, 0)
CLIENTS = [counts(4, 3, 0), counts(0, 6, 0)]


def test_by_hand() -> None:
    found = views(SERVER, CLIENTS, TEST, PRIVATE)
    assert found == {
        "server@global": pytest.approx(8 / 10),
        # Client 0: 7 of 10; client 1: 6 of 10.
        "client@global": pytest.approx(0.65),
        # Client 0: 3/4 of class 0 (4/4 right) + 1/4 of class 1 (3/6). Client 1: class 1 alone (6/6).
        "client@own": pytest.approx(((3 / 4) * 1 + (1 / 4) * 0.5 + 1) / 2),
    }
    assert all(type(value) is float for value in found.values())


def test_views_that_a_method_does_not_have_are_absent() -> None:
    assert list(views(None, CLIENTS, TEST, PRIVATE)) == ["client@global", "client@own"]
    assert list(views(SERVER, [], TEST, PRIVATE)) == ["server@global"]
    assert views(None, [], TEST, PRIVATE) == {}


def test_a_client_with_untested_classes_alone_is_left_out_of_own() -> None:
    private = torch.tensor([[3, 1, 0], [0, 0, 8]])
    found = views(None, CLIENTS, TEST, private)
    assert found["client@own"] == pytest.approx((3 / 4) * 1 + (1 / 4) * 0.5)
    assert found["client@global"] == pytest.approx(0.65)
    assert "client@own" not in views(None, CLIENTS, TEST, torch.tensor([[0, 0, 1], [0, 0, 2]]))


def test_own_is_global_where_data_are_alike() -> None:
    private = torch.tensor([[40, 60, 0], [2, 3, 0]])
    found = views(None, CLIENTS, TEST, private)
    assert found["client@own"] == pytest.approx(found["client@global"])


@given(st.data())
def test_against_a_plain_loop(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 5))
    clients = data.draw(st.integers(1, 4))
    test = data.draw(st.lists(st.integers(0, 9), min_size=classes, max_size=classes).filter(any))
    right = [[data.draw(st.integers(0, size)) for size in test] for _ in range(clients)]
    held = [[data.draw(st.integers(0, 5)) for _ in test] for _ in range(clients)]
    found = views(None, [torch.tensor(row) for row in right], torch.tensor(test), torch.tensor(held))
    own = []
    for row, hold in zip(right, held, strict=True):
        tested = [(r, t, h) for r, t, h in zip(row, test, hold, strict=True) if t]
        weight = sum(h for _, _, h in tested)
        if weight:
            own.append(sum(h * r / t for r, t, h in tested) / weight)
    assert found["client@global"] == pytest.approx(sum(map(sum, right)) / sum(test) / clients)
    if own:
        assert found["client@own"] == pytest.approx(sum(own) / len(own))
    else:
        assert "client@own" not in found


class Says(nn.Module):
    """Gives the class that the first token of a text names."""

    def forward(self, tokens: Tensor) -> Tensor:
        assert not self.training
        return nn.functional.one_hot(tokens[:, 0], 4).float()


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_correct_by_class(batch: int) -> None:
    inputs = torch.tensor([[0], [1], [1], [2], [0]], dtype=torch.int32)
    labels = torch.tensor([0, 1, 2, 2, 1])
    model = Says().train()
    assert Answers.of(model, inputs, labels, batch).correct_by_class().tolist() == [1, 1, 1, 0]
