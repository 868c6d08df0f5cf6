"""Messages of statistics: the request is empty, and what a client counts comes back without loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedistill.communication.codecs.registry import create_codec
from fedistill.communication.messages.base import MessageContext, example_message
from fedistill.communication.messages.statistics import FeatureMoments, StatisticsRequest, WordCounts
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.protocol.shared_state import EMPTY
from fedistill.communication.varint import varint
from fedistill.errors import FrameError

CONTEXT = MessageContext(classes=3, width=5, private=4, length=6)
CODER = MessageCoder(
    create_codec("qsgd"), create_codec("fp16"), 0, (WordCounts, FeatureMoments, StatisticsRequest)
)
TEXTS = torch.tensor([3, 0, 1])
WORDS = torch.tensor([9, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2])


def sections(message: WordCounts) -> tuple[bytes, ...]:
    return CODER.write("up", message, CONTEXT, EMPTY, sent=None, own={}, round=1, client=0).sections


def read(given: tuple[bytes, ...]) -> WordCounts:
    return CODER.read("up", WordCounts, given, CONTEXT, EMPTY, sent=None, round=1).message


def test_a_request_has_no_content() -> None:
    sent = StatisticsRequest()
    written = CODER.write("down", sent, CONTEXT, EMPTY, sent=None, own=None, round=1, client=-1)
    assert written.sections == ()
    came = CODER.read("down", StatisticsRequest, (), CONTEXT, EMPTY, sent=None, round=1)
    assert came.message == sent
    with pytest.raises(FrameError):
        CODER.read("down", StatisticsRequest, (b"",), CONTEXT, EMPTY, sent=None, round=1)


@pytest.mark.parametrize("skipped", [0, 1])
def test_counts_come_back_whatever_the_codec(skipped: int) -> None:
    came = read(sections(WordCounts(TEXTS, WORDS, skipped)))
    assert came.texts.tolist() == TEXTS.tolist()
    assert came.words.tolist() == WORDS.tolist()
    assert came.skipped == skipped


def test_counts_that_no_client_can_have_are_refused() -> None:
    """Four texts of six words: 24 words at most."""
    *most, number = sections(WordCounts(TEXTS, WORDS + torch.eye(1, 15, dtype=torch.int64)[0] * 6, 0))
    assert read((*most, number)).words.sum() == 24
    one_more = WordCounts(TEXTS, WORDS + torch.eye(1, 15, dtype=torch.int64)[0] * 7, 0)
    with pytest.raises(FrameError, match="section 'words': the counts add up to 25, more than 24"):
        read(sections(one_more))
    with pytest.raises(FrameError, match="`skipped` is 1073741824; it must be below 1073741824"):
        read((*most, varint(1 << 30)))


def test_an_example_has_all_words_of_all_texts() -> None:
    example = example_message(WordCounts, CONTEXT)
    assert example.tensors()["words"].sum() == 24
    assert example.numbers() == {"skipped": 0}
    assert np.array_equal(example.tensors()["texts"].numpy(), [0, 1, 2])


MOMENTS = FeatureMoments(
    classes=torch.tensor([0, 2]),
    samples=torch.tensor([3, 1]),
    scales=torch.tensor([4, -2, 0, 9, 1]),
    means=torch.tensor([8, 0, -3, 40, 2, 1, 1, 0, -9, 0]),
    correlations=torch.tensor([0, 1, -2, 7, 0, 0, -7, 3, 0, 1]),
    present=2,
    levels=7,
)


def moments_sections(message: FeatureMoments) -> tuple[bytes, ...]:
    return CODER.write("up", message, CONTEXT, EMPTY, sent=None, own={}, round=1, client=0).sections


def read_moments(given: tuple[bytes, ...]) -> FeatureMoments:
    found = CODER.read("up", FeatureMoments, given, CONTEXT, EMPTY, sent=None, round=1).message
    found.check()
    return found


def test_moments_come_back() -> None:
    came = read_moments(moments_sections(MOMENTS))
    assert came.numbers() == MOMENTS.numbers()
    assert all(torch.equal(value, MOMENTS.tensors()[name]) for name, value in came.tensors().items())


@pytest.mark.parametrize(
    ("levels", "said"),
    [(0, "`levels` is 0; it must be at least 1"), (300, "`levels` is 300; it must be 255 at most")],
)
def test_levels_are_from_1_to_255(levels: int, said: str) -> None:
    *parts, _ = moments_sections(replace(MOMENTS, correlations=MOMENTS.correlations.clamp(-1, 1), levels=1))
    with pytest.raises(FrameError, match=said):
        read_moments((*parts, varint(levels)))


def test_more_classes_than_there_are_are_refused() -> None:
    *parts, _, levels = moments_sections(MOMENTS)
    with pytest.raises(FrameError, match="`present` is 4; there are 3 classes"):
        read_moments((*parts, varint(4), levels))
