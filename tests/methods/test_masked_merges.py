"""Merges of a random part of the weights: what is drawn, rounded, trained and followed, by hand."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedistill.communication.messages.masked import MaskedRequest, step_size, steps_as_bytes
from fedistill.errors import FrameError
from fedistill.experiment.preflight import examine
from fedistill.methods.shared.masked_merges import (
    Changes,
    MaskSettings,
    Trail,
    _only,
    catch_up,
    check_turn,
    masks_of,
    merge,
    moved,
    trained_weights,
)
from fedistill.methods.weights.random_mask import MaskClient
from fedistill.state import decode_state, from_plain
from helpers.runs import finished, ready

PARTS = ((40, 50), (40,), (3, 40), (3,))
RAW: dict[str, Any] = {
    "rounds": 4,
    "task": {"name": "digits", "clients": 4, "limit": 240, "public": 0},
    "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    "train": {"batch_size": 16, "optimizer": {"lr": 0.02, "momentum": 0.9}},
    "runtime": {"kind": "serial"},
    "arms": [{"method": "random-mask", "trained_share": 0.2}],
}


def test_a_mask_is_a_share_of_the_matrices_and_all_vectors_and_new_for_each_merge() -> None:
    first, again, second = (trained_weights(3, PARTS, 0.1, number) for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, trained_weights(4, PARTS, 0.1, 1))
    assert first[2000:2040].all()
    assert first[2160:].all()
    assert 150 < int(first[:2000].sum()) < 250
    assert trained_weights(3, PARTS, 1.0, 1).all()


def test_changes_are_whole_steps_of_a_multiple_of_their_root_mean_square() -> None:
    found = Changes.rounded(torch.tensor([3.0, -3.0, 0.4, 0.0]), 1.0)  # root mean square 2.131
    assert step_size(found.step) == pytest.approx(2.131, rel=1 / 256)
    assert found.multiples.tolist() == [1, -1, 0, 0]
    nothing = Changes.rounded(torch.zeros(4), 1.0)
    assert (nothing.step, nothing.multiples.tolist()) == (0, [0, 0, 0, 0])
    assert len(Changes.rounded(torch.zeros(0), 1.0).values()) == 0
    far = Changes.rounded(torch.cat([torch.tensor([1e4]), torch.zeros(10**6)]), 0.01)
    assert far.multiples[0] == 127


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.floats(0.05, 4.0))
def test_rounding_is_off_by_half_a_step(numbers: list[float], coarseness: float) -> None:
    values = torch.tensor(numbers)
    found = Changes.rounded(values, coarseness)
    inside = values.abs() < 126 * step_size(found.step)
    error = (found.values() - values).abs()
    assert (error[inside] <= 0.5001 * step_size(found.step)).all()
    assert (found.multiples.abs() <= 127).all()


def trail_of(merges: int, mask: Any) -> tuple[Trail, list[Tensor]]:
    """A trail of so many merges, and the weights after each."""
    generator = torch.Generator().manual_seed(merges)
    trail = Trail.at(torch.randn(len(mask(1)), generator=generator))
    held = [trail.weights]
    for number in range(1, merges + 1):
        changes = Changes.rounded(torch.randn(int(mask(number).sum()), generator=generator), 1.0)
        trail = trail.after(changes, mask(number))
        held.append(trail.weights)
    return trail, held


@given(st.integers(0, 5), st.data())
def test_a_client_that_was_away_ends_where_all_are(merges: int, data: st.DataObject) -> None:
    mask = partial(trained_weights, 0, ((4, 5), (3,)), 0.5)
    trail, held = trail_of(merges, mask)
    known = data.draw(st.integers(0, merges))
    ahead = data.draw(st.integers(known, merges))  # its last replies may not have arrived
    steps, changes = trail.since(known)
    request = MaskedRequest(merges + 1, known, steps_as_bytes(steps), changes)
    found = catch_up(held[ahead], ahead, request, mask)
    assert found is not None
    assert torch.equal(found, trail.weights)


def test_a_client_that_knows_less_than_the_server_thinks_says_so() -> None:
    mask = partial(trained_weights, 0, ((4, 5),), 0.5)
    trail, held = trail_of(3, mask)
    steps, changes = trail.since(2)
    request = MaskedRequest(4, 2, steps_as_bytes(steps), changes)
    assert catch_up(held[1], 1, request, mask) is None
    assert catch_up(held[3], 4, request, mask) is None  # of another run


def test_a_merge_is_the_mean_by_samples_and_clients_follow_it_rounded() -> None:
    trained = torch.tensor([True, False, True])
    trail = Trail.at(torch.tensor([1.0, 1.0, 1.0]))
    came = [
        (0, Changes(0x3F80, torch.tensor([2, 0])), 3.0),  # steps of 1
        (5, Changes(0x4000, torch.tensor([-1, 4])), 1.0),  # steps of 2
    ]
    found = merge(trail, came, trained, MaskSettings(down_step=1.0))
    assert found is not None
    after = found.trail
    assert found.weights.tolist() == [2.0, 1.0, 3.0]
    assert not found.reliability
    # The changes 1 and 2 have a root mean square of 1.58.
    assert after.weights.tolist() == pytest.approx([2.58, 1.0, 2.58], abs=0.01)
    assert merge(trail, [], trained, MaskSettings()) is None
    check_turn(2, after)
    with pytest.raises(FrameError, match="merge 1 came where those for 2"):
        check_turn(1, after)


def test_a_merge_may_take_medians_and_then_says_whom_it_followed() -> None:
    trained = torch.tensor([True, False, True])
    trail = Trail.at(torch.tensor([1.0, 1.0, 1.0]))
    one = 0x3F80
    sent = {2: [2, 2], 4: [2, 4], 7: [-2, -40]}
    came = [(client, Changes(one, torch.tensor(values)), 1.0) for client, values in sent.items()]
    found = merge(trail, came, trained, MaskSettings(averaging="median"))
    assert found is not None
    assert found.weights.tolist() == [3.0, 1.0, 3.0]
    assert found.reliability == pytest.approx({2: 1.0, 4: 6 / math.sqrt(2 * 20), 7: 0.0}, abs=1e-6)


def test_gradients_are_masked_only_within() -> None:
    module = nn.Linear(2, 1, bias=False)
    complex_weight = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    module.register_parameter("other", complex_weight)
    flags = torch.tensor([True, False, False, True])

    def gradients() -> list[list[Any]]:
        module.zero_grad()
        (module(torch.ones(1, 2)).sum() + (complex_weight * (2 + 3j)).abs().sum()).backward()
        return [parameter.grad.tolist() for parameter in module.parameters() if parameter.grad is not None]

    whole = gradients()
    with _only(module, flags):
        masked = gradients()
    assert masked[0] == [[1.0, 0.0]]
    assert masked[1][0] == complex(0, whole[1][0].imag)
    assert gradients() == whole


def test_what_is_not_in_the_mask_stays_even_with_weight_decay() -> None:
    decay = {"lr": 0.02, "weight_decay": 0.1}
    arm, run = finished({**RAW, "rounds": 2, "train": {"batch_size": 16, "optimizer": decay}})
    trained = masks_of(arm.federation, "mlp-s", 0.2)(2)
    for client in range(4):
        state = from_plain(MaskClient, decode_state(run.clients[client])["method"])
        assert state.merges == 1
        still = run.server.trail.weights == state.weights  # what the second merge left as it was
        assert still[~trained].all()
        assert not still[trained].all()


def test_clients_that_are_away_catch_up() -> None:
    _, run = finished({**RAW, "rounds": 6, "sampling": {"fraction": 0.5}})
    assert run.server.trail.merges == 6
    assert run.server.known.max() == 5
    downs = [entry.payload for entry in run.ledger.entries if entry.direction == "down" and entry.round > 1]
    assert max(downs) > 1.5 * min(downs)  # some were told several merges


def test_models_with_buffers_are_refused() -> None:
    own = "test_masked_merges:batch_norm"
    experiment, arm = ready({**RAW, "models": {"clients": [own], "server": own}})
    errors = [finding.what for finding in examine(experiment, arm.task, [arm]) if finding.level == "error"]
    assert any("has buffers, such as the statistics of batch norm" in error for error in errors)


def batch_norm(signature: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))


def test_moved_leaves_its_argument_as_it_is() -> None:
    weights = torch.zeros(3)
    assert moved(weights, torch.ones(1), torch.tensor([False, True, False])).tolist() == [0.0, 1.0, 0.0]
    assert not weights.any()
