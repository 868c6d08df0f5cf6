"""The link model: from bytes and local work to seconds ("how long would it take on that link?").

A message costs the latency once, plus its bits at the rate of its direction. Lost bytes are sent
again, so loss reduces the rate by its share. Work is the number of multiply-adds, at the stated speed
of the client and of the server: nothing is timed, so equal runs take equally long, on whatever machine
they were run. A synchronous round lasts as long as its slowest client, plus the server's own work.

The model leaves out work that is no multiply-add, such as coding a message, queueing, channels or a
server line shared by clients, slow start and handshakes, packet headers, waiting for a retransmission,
rates that change over time, and clients that drop out.
The profiles are single points for orders of magnitude, not forecasts for a given site.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

_COMPUTER, _PHONE, _BOARD, _SERVER = 1e10, 3e9, 1e9, 1e11
"""Multiply-adds per second of small networks; see the sources of `PROFILES`."""
_SLOWEST = 1e6


class Link(BaseModel):
    """One client's link to the server, and how fast both compute.

    Raises:
        pydantic.ValidationError: a figure is out of range or not finite, or a field is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str = Field(default="custom", description="name shown in reports")
    up: float = Field(gt=0, description="bits per second, client to server")
    down: float = Field(gt=0, description="bits per second, server to client")
    latency: float = Field(ge=0, description="seconds, one way, once per message")
    loss: float = Field(default=0.0, ge=0, lt=1, description="share of bytes lost and sent again")
    compute: float = Field(
        default=_COMPUTER, ge=_SLOWEST, description="multiply-adds per second at which the client computes"
    )
    server: float = Field(
        default=_SERVER, ge=_SLOWEST, description="multiply-adds per second at which the server computes"
    )
    sources: dict[str, str] = Field(
        default_factory=dict, description="field name -> where the figure comes from"
    )


@dataclass(frozen=True, slots=True)
class LinkUse:
    """What one client transferred and computed in one round.

    Attributes:
        down: bytes received, 0 or more.
        work: multiply-adds of local work, 0 or more.
        up: bytes sent, 0 or more.
    """

    down: int
    work: int
    up: int


def client_seconds(link: Link, use: LinkUse) -> float:
    """Return the seconds that one client needs to receive, work and send, one after the other.

    Args:
        link: the client's link.
        use: the client's bytes and work. A direction with 0 bytes has no message and takes no time.
    """
    return (
        _message_seconds(link, use.down, link.down)
        + use.work / link.compute
        + _message_seconds(link, use.up, link.up)
    )


def round_seconds(link: Link, uses: Sequence[LinkUse], server: int = 0) -> float:
    """Return the seconds of a synchronous round in which every client has such a link to itself.

    Args:
        link: the link that every client has.
        uses: one per client that took part; empty if only the server worked.
        server: multiply-adds of the server's own work.
    """
    return max((client_seconds(link, one) for one in uses), default=0.0) + server / link.server


def _message_seconds(link: Link, size: int, rate: float) -> float:
    # Each byte is sent 1 / (1 - loss) times on average, since a byte sent again can be lost again.
    return link.latency + 8 * size / (rate * (1 - link.loss)) if size else 0.0


def _profile(title: str, **figures: tuple[float, str]) -> Link:
    figures |= {"server": (_SERVER, _AT_SERVER)}
    return Link.model_validate(
        {"title": title, "sources": {name: source for name, (_, source) in figures.items()}}
        | {name: value for name, (value, _) in figures.items()}
    )


_LORA = (
    "LoRa Alliance RP002 Regional Parameters, EU863-870 data rate table: DR5 (SF7, 125 kHz) is "
    "5470 bit/s; times the 1 % duty cycle of ETSI EN 300 220-2 Annex B for 868.0-868.6 MHz, because"
    " a model without bursts needs the long-run rate"
)
_OFCOM = (
    "Ofcom, Measuring mobile broadband performance in the UK: 4G and 3G network performance, "
    "2 April 2015 (measured Q4 2014): average "
)
_AWS = "AWS, Amazon EC2 instance network bandwidth: a single flow is limited to 5 Gbps"
_HUGHES = "HughesNet Gen5 service plans, designed (advertised, not measured) for 25 down, 3 Mbps up"
_RESENT = "our assumption: none, as the measured rates already include retransmissions"
_ON_BOARD = "our assumption: 1 G multiply-adds/s, a single-board computer"
_ON_PHONE = "our assumption: 3 G multiply-adds/s, a phone or tablet"
_ON_COMPUTER = "our assumption: 10 G multiply-adds/s, one core of a desktop computer"
_AT_SERVER = "our assumption: 100 G multiply-adds/s, ten times one core of a desktop computer"

PROFILES: dict[str, Link] = {
    "lora": _profile(
        "LoRaWAN EU868, SF7",
        up=(54.7, _LORA),
        down=(54.7, _LORA + "; our assumption: the gateway keeps its 1 % for this client alone"),
        latency=(1.0, "our assumption: RECEIVE_DELAY1 of 1 s (RP002), in both directions"),
        loss=(0.1, "our assumption: one frame in ten is lost and sent again"),
        compute=(_BOARD, _ON_BOARD),
    ),
    "nb-iot": _profile(
        "NB-IoT Cat NB1",
        up=(
            62.5e3,
            "our arithmetic from 3GPP TS 36.213 Rel-13 clause 16: the largest block of 1000 bits "
            "per 16 ms (1 ms grant, 8 ms gap, 4 ms for 12 tones, 3 ms gap); best coverage",
        ),
        down=(
            19.6e3,
            "techplayon.com, NB IOT Peak Data Rate Calculation: 680 bits per 26 ms, less 25 % for "
            "broadcast and synchronisation; best coverage",
        ),
        latency=(0.837, "Electronics 2021, 10, 2224, abstract: 837 ms; our assumption: one way"),
        loss=(0.1, "our assumption: one block in ten is lost and sent again"),
        compute=(_BOARD, _ON_BOARD),
    ),
    "3g": _profile(
        "3G",
        up=(1.6e6, _OFCOM + "3G upload 1.6 Mbit/s"),
        down=(5.9e6, _OFCOM + "3G download 5.9 Mbit/s"),
        latency=(0.03175, _OFCOM + "3G latency 63.5 ms there and back, of which half"),
        loss=(0.0, _RESENT),
        compute=(_PHONE, _ON_PHONE),
    ),
    "4g": _profile(
        "4G",
        up=(13.6e6, _OFCOM + "4G upload 13.6 Mbit/s"),
        down=(14.7e6, _OFCOM + "4G download 14.7 Mbit/s"),
        latency=(0.02655, _OFCOM + "4G latency 53.1 ms there and back, of which half"),
        loss=(0.0, _RESENT),
        compute=(_PHONE, _ON_PHONE),
    ),
    "satellite": _profile(
        "Geostationary satellite",
        up=(3e6, _HUGHES),
        down=(25e6, _HUGHES),
        latency=(0.279, "RFC 2488 section 2: 279.0 ms per hop at the edge of view; propagation only"),
        loss=(1e-7, "our assumption: quasi error free both ways, ETSI EN 302 307-1 clause 6"),
        compute=(_COMPUTER, _ON_COMPUTER),
    ),
    "office-dsl": _profile(
        "Office ADSL2+",
        up=(0.8e6, "our assumption: 800 kbit/s, a usual rate of an ADSL2+ line (ITU-T G.992.5)"),
        down=(10e6, "Ofcom, UK Home Broadband Performance, 9 May 2018: ADSL around 10 Mbit/s"),
        latency=(0.015, "our assumption: a 30 ms round trip with interleaving, of which half"),
        loss=(0.004, "our assumption: end of the best class, FCC MBA Ninth Report, Chart 8"),
        compute=(_COMPUTER, _ON_COMPUTER),
    ),
    "data-centre": _profile(
        "Data centre",
        up=(5e9, _AWS),
        down=(5e9, _AWS),
        latency=(0.00025, "Dean, LADIS 2009 keynote: 0.5 ms round trip in a data centre, half"),
        loss=(1e-4, "Guo et al., Pingmesh, SIGCOMM 2015: drop rates 1e-4 to 1e-5, the upper end"),
        compute=(_COMPUTER, _ON_COMPUTER),
    ),
}
