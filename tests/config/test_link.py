"""The link model against numbers worked out by hand, and the properties any link must have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedistill.config.link import PROFILES, Link, LinkUse, client_seconds, round_seconds

FIGURES = {"up", "down", "latency", "loss", "compute", "server"}
PLAIN = Link(up=1000, down=4000, latency=0.5, compute=2e6, server=5e6)
M = 10**6

sizes = st.integers(min_value=0, max_value=10**10)
work = st.integers(min_value=0, max_value=10**15)
links = st.builds(
    Link,
    up=st.floats(min_value=1, max_value=1e10),
    down=st.floats(min_value=1, max_value=1e10),
    latency=st.floats(min_value=0, max_value=10),
    loss=st.floats(min_value=0, max_value=0.99),
    compute=st.floats(min_value=1e6, max_value=1e13),
    server=st.floats(min_value=1e6, max_value=1e13),
)
exchanges = st.builds(LinkUse, down=sizes, work=work, up=sizes)


@pytest.mark.parametrize(
    ("exchange", "expected"),
    [
        # 0.5 + 8000 / 4000, then 12 M at 2 M/s, then 0.5 + 2000 / 1000
        (LinkUse(down=1000, work=12 * M, up=250), 2.5 + 6 + 2.5),
        (LinkUse(down=0, work=12 * M, up=250), 6 + 2.5),
        (LinkUse(down=1000, work=12 * M, up=0), 2.5 + 6),
        (LinkUse(down=0, work=0, up=0), 0),
    ],
)
def test_an_exchange_takes_what_it_takes_by_hand(exchange: LinkUse, expected: float) -> None:
    assert client_seconds(PLAIN, exchange) == expected


def test_loss_slows_bytes_but_neither_latency_nor_work() -> None:
    lossy = PLAIN.model_copy(update={"loss": 0.75})
    # 0.5 + 4 * 2, then 6, then 0.5 + 4 * 2
    assert client_seconds(lossy, LinkUse(down=1000, work=12 * M, up=250)) == 8.5 + 6 + 8.5


@pytest.mark.parametrize(
    ("name", "exchange", "expected"),
    [
        # 547 B are 4376 bit, 80 s at 54.7 bit/s; one frame in ten sent again
        ("lora", LinkUse(down=0, work=0, up=547), 1 + 80 / 0.9),
        ("nb-iot", LinkUse(down=2450, work=10**10, up=7812), 1.674 + (1 + 0.999936) / 0.9 + 10),
        # 200 kB are 1.6 Mbit
        ("3g", LinkUse(down=0, work=9 * 10**9, up=200_000), 0.03175 + 1 + 3),
        ("satellite", LinkUse(down=3_125_000, work=0, up=0), 0.279 + 1),
        ("data-centre", LinkUse(down=0, work=7 * 10**10, up=625_000_000), 7 + 0.00025 + 1 / 0.9999),
    ],
)
def test_profiles_by_hand(name: str, exchange: LinkUse, expected: float) -> None:
    assert client_seconds(PROFILES[name], exchange) == pytest.approx(expected, rel=1e-6)


def test_a_round_waits_for_the_slowest_client_and_then_for_the_server() -> None:
    slow = LinkUse(down=1000, work=12 * M, up=250)
    fast = LinkUse(down=1000, work=0, up=250)
    assert round_seconds(PLAIN, [fast, slow, fast], server=35 * M) == 11 + 7
    assert round_seconds(PLAIN, [fast]) == 5


def test_a_round_without_clients_is_the_servers_time() -> None:
    assert round_seconds(PLAIN, [], server=35 * M) == 7
    assert round_seconds(PLAIN, []) == 0


@given(links, exchanges, sizes, sizes)
def test_more_bytes_are_never_faster(link: Link, one: LinkUse, down: int, up: int) -> None:
    more = LinkUse(down=one.down + down, work=one.work, up=one.up + up)
    assert client_seconds(link, more) >= client_seconds(link, one)


@given(
    links,
    exchanges,
    st.sampled_from(["up", "down", "latency", "loss", "compute"]),
    st.floats(min_value=0, max_value=1),
)
def test_a_slower_link_is_never_faster(link: Link, one: LinkUse, field: str, amount: float) -> None:
    figure: float = getattr(link, field)
    worse = {
        "up": figure / (1 + amount),
        "down": figure / (1 + amount),
        "latency": figure + amount,
        "loss": figure + (0.999 - figure) * amount,
        "compute": figure / (1 + amount),
    }[field]
    slower = link.model_copy(update={field: worse})
    assert client_seconds(slower, one) >= client_seconds(link, one)


@given(links, sizes, sizes)
def test_loss_divides_the_rate_exactly(link: Link, down: int, up: int) -> None:
    clean = link.model_copy(update={"latency": 0.0, "loss": 0.0})
    lossy = clean.model_copy(update={"loss": link.loss})
    one = LinkUse(down=down, work=0, up=up)
    kept = 1 - link.loss
    assert client_seconds(lossy, one) * kept == pytest.approx(client_seconds(clean, one))


@given(links, st.lists(exchanges, min_size=1, max_size=5), work)
def test_a_round_is_no_shorter_than_any_of_its_clients(
    link: Link, clients: list[LinkUse], server: int
) -> None:
    alone = [round_seconds(link, [one], server) for one in clients]
    assert round_seconds(link, clients, server) == max(alone)


def test_the_profiles_are_the_documented_ones() -> None:
    assert list(PROFILES) == [
        "lora",
        "nb-iot",
        "3g",
        "4g",
        "satellite",
        "office-dsl",
        "data-centre",
    ]
    assert set(Link.model_fields) - {"title", "sources"} == FIGURES


@pytest.mark.parametrize("name", PROFILES)
def test_every_figure_of_a_profile_has_a_source(name: str) -> None:
    link = PROFILES[name]
    assert link.model_fields_set >= FIGURES
    assert set(link.sources) == FIGURES
    for source in link.sources.values():
        # A reference without a number (year, clause, document) cannot be looked up.
        assert source.startswith("our assumption: ") or any(c.isdigit() for c in source)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("up", 0),
        ("up", float("inf")),
        ("down", -1),
        ("down", float("nan")),
        ("latency", -0.1),
        ("latency", float("inf")),
        ("loss", 1),
        ("loss", -0.1),
        ("compute", 0),
        ("compute", 3),  # a factor, as it was once
        ("server", 0),
        ("compute", "fast"),
        ("bandwidth", 5),
    ],
)
def test_a_bad_value_is_refused_with_its_field_named(field: str, value: object) -> None:
    good = {"up": 1.0, "down": 1.0, "latency": 0.0}
    with pytest.raises(ValidationError) as refused:
        Link.model_validate({**good, field: value})
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


def test_a_link_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PROFILES["lora"].up = 1e9
