"""Codecs on recorded messages: bits a symbol, the ideal under the codec's own model, overhead and speed.

    python benchmarks/codecs.py [--only NAME ...] [--rounds 10]

Records what crosses in three runs on Fashion-MNIST (6 clients, Dirichlet 0.3, 18,000 private and 4,000
public images, cnn-s, seed 0): one-hot labels (voting), soft labels (dsfl) and weights (fedavg). Then each
codec that can code them replays them, in both directions, with the memory that a run would have, and its
length is counted from round 2 on, and for soft labels the mean KL divergence to what the receiver reads (a
probability of 0 counts as 1e-7). Ideal is the code length under the codec's own model of what it gives to
the range coder. Speed is by CPU time of one core on one large message: 50,000 samples of 10 classes with
memory, or 1,000,000 weights, medians of five.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fedistill import parse
from fedistill.communication.codecs.base import Codec, Sender
from fedistill.communication.codecs.registry import CODECS, create_codec, title
from fedistill.communication.entropy_coding.range_coder import Encoder, ideal_bits
from fedistill.communication.kinds import Direction
from fedistill.communication.messages.base import Message, MessageContext
from fedistill.communication.messages.labels import SoftLabels
from fedistill.communication.messages.weights import Weights
from fedistill.communication.protocol import frame as frames
from fedistill.communication.protocol.message_coder import MessageCoder
from fedistill.communication.tensor_specs import Content, SharedKnowledge, TensorSpec
from fedistill.experiment.runner import prepare
from fedistill.federation.client import ClientResult
from fedistill.federation.executor import Executor, Job
from fedistill.federation.local_executor import SerialExecutor
from fedistill.federation.round import play_round
from fedistill.federation.scores import Scores
from fedistill.federation.setup import start_run

RESULTS = Path(__file__).parent / "results" / "codecs.json"
Floats = NDArray[np.float32]
CLIENTS, PUBLIC, CLASSES = 6, 4_000, 10
LARGE = {"labels": 50_000, "soft labels": 50_000, "weights": 1_000_000}
RECORDED = {"labels": "voting", "soft labels": "dsfl", "weights": "fedavg"}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "onehot": [{"coder": coder} for coder in ("plain", "order0", "delta", "predictive")],
    "simplex": [{"bits": bits, "coder": coder} for bits in (1, 2, 4) for coder in ("delta", "predictive")],
    "log-probs": [{"bits": 4}, {}],
}


@dataclass(frozen=True)
class Trace:
    """What crossed in one run: for each round and client, the tensor down (or None) and the tensor up."""

    name: str
    spec: TensorSpec
    rounds: list[list[tuple[Floats | None, Floats | None]]]
    sizes: MessageContext
    kind: type[Message]
    start: Floats | None

    def message(self, values: Floats) -> Message:
        tensor = torch.from_numpy(values.copy())
        return Weights(tensor) if self.kind is Weights else SoftLabels(tensor, 1)


@dataclass
class Length:
    """Bytes of messages, those that came from the range coder, how long these should be, and what is lost."""

    symbols: int = 0
    payload: int = 0
    coded: int = 0
    ideal: float = 0.0
    divergence: float = 0.0
    worst: list[float] = field(default_factory=list)


class Recorder(Executor):
    """Hands jobs on and keeps the frames."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.rounds: list[list[tuple[bytes, bytes]]] = []

    def run_clients(self, arm: str, round: int, jobs: Sequence[Job]) -> Iterator[ClientResult]:
        self.rounds.append([])
        for job, outcome in zip(jobs, self.inner.run_clients(arm, round, jobs), strict=True):
            self.rounds[-1].append((job[2], outcome.frame))
            yield outcome

    def evaluate(self, arm: str, jobs: Sequence[Job]) -> Iterator[Scores | None]:
        return self.inner.evaluate(arm, jobs)

    def close(self) -> None:
        self.inner.close()


def record(name: str, rounds: int) -> Trace:
    """Run a method with plain numbers and keep what crosses."""
    wanted = parse(
        {
            "rounds": rounds,
            "task": {
                "name": "fashion-mnist",
                "limit": 18_000,
                "clients": CLIENTS,
                "public": PUBLIC,
                "partition": {"kind": "dirichlet", "alpha": 0.3},
            },
            "models": {"clients": ["cnn-s"], "server": "cnn-s"},
            "train": {"optimizer": {"lr": 0.02, "momentum": 0.9}},
            "evaluate": {"every": rounds},
            "arms": [{"method": RECORDED[name], "codec": "fp32"}],
        },
        "benchmark",
    )
    task, (arm,) = prepare(wanted)
    run = start_run(arm)
    with Recorder(SerialExecutor(wanted, task)) as executor:
        while run.round < rounds:
            play_round(run, arm, executor)
        recorded = [[(_floats(down), _floats(up)) for down, up in clients] for clients in executor.rounds]
    sizes = arm.message_context(0)
    weights = name == "weights"
    kind: type[Message] = Weights if weights else SoftLabels
    start = arm.server(0).initial_weights("cnn-s").numpy() if weights else None
    return Trace(name, kind.specs(sizes, {"sampled_round": 1}).popitem()[1], recorded, sizes, kind, start)


def _floats(frame: bytes) -> Floats | None:
    return np.frombuffer(frames.decode(frame).sections[0], "<f4") if frame else None


@contextmanager
def counted(length: Length) -> Iterator[None]:
    """Count what the range coder is given and what it makes of it."""
    put, finish = Encoder.put, Encoder.finish
    given = 0.0

    def spying_put(self: Encoder, symbols: Any, frequencies: Any) -> None:
        nonlocal given
        if len(symbols):
            given += ideal_bits(symbols, frequencies)
        put(self, symbols, frequencies)

    def spying_finish(self: Encoder) -> bytes:
        nonlocal given
        payload = finish(self)
        length.coded += len(payload)
        length.ideal += given
        length.worst.append(len(payload) - given / 8)
        given = 0.0
        return payload

    Encoder.put, Encoder.finish = spying_put, spying_finish  # type: ignore[method-assign]  # a spy
    try:
        yield
    finally:
        Encoder.put, Encoder.finish = put, finish  # type: ignore[method-assign]  # a spy


def replay(trace: Trace, settings: dict[str, Any]) -> dict[Direction, Length]:
    """Send a trace through a codec in both directions, client by client, as a run would."""
    lengths: dict[Direction, Length] = {"up": Length(), "down": Length()}
    for client in range(CLIENTS):
        exchange = MessageCoder(create_codec(settings), create_codec(settings), seed=0)
        memory = exchange.start(None if trace.start is None else torch.from_numpy(trace.start))
        own: dict[str, Any] = {}
        for number, clients in enumerate(trace.rounds, start=1):
            down, up = clients[client]
            sent = None
            for way, values in (("down", down), ("up", up)):
                if values is None:
                    continue
                length = Length()
                if way == "up" and sent is not None and down is not None:
                    values = sent + (values - down)  # the recorded change, from where a lossy codec led
                message = trace.message(values.reshape(trace.spec.shape))
                kept = own if way == "up" else None
                with counted(length):
                    written = exchange.write(
                        way, message, trace.sizes, memory, sent=sent, own=kept, round=number, client=client
                    )
                before, memory = memory, written.shared
                if number > 1 and trace.name == "soft labels":
                    read = exchange.read(
                        way, trace.kind, written.sections, trace.sizes, before, sent=sent, round=number
                    )
                    lengths[way].divergence += divergence(values, read.message.tensors()["probs"].numpy())
                if way == "up":
                    own = written.own
                else:
                    sent = written.weights
                if number > 1:
                    total = lengths[way]
                    total.symbols += trace.spec.shape[0]
                    total.payload += len(written.sections[0])
                    total.coded += length.coded
                    total.ideal += length.ideal
                    total.worst += length.worst
    return lengths


def divergence(sent: Floats, read: Floats) -> float:
    """Return the sum over rows of the KL divergence from what was sent to what was read, in nats."""
    p, q = sent.reshape(read.shape).astype(np.float64), np.maximum(read.astype(np.float64), 1e-7)
    logs = np.log(np.maximum(p, 1e-300) / q)
    return float((p * logs).sum())


def speed(trace: Trace, codec: Codec) -> tuple[float, float]:
    """Million symbols a second, encoding and decoding, on one large message."""
    size = LARGE[trace.name]
    first, second = (_enlarged(trace.rounds[-number][0][1], trace, size) for number in (2, 1))
    spec = replace(trace.spec, shape=(size, *trace.spec.shape[1:]), parts=((size // 1000, 1000),))
    known = SharedKnowledge()
    if trace.kind is Weights:
        known = SharedKnowledge(reference=first)
    else:
        spec = replace(spec, rows=np.arange(size), population=size)
        other_labels = first.reshape(spec.shape).argmax(axis=1)
        for _ in range(2):
            encoded = codec.encode(first.reshape(spec.shape), spec, known, Sender({}))
            known = SharedKnowledge(memory=encoded.memory, other_labels=other_labels)
    values = second.reshape(spec.shape)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(5):
        start = time.process_time()
        payload = codec.encode(values, spec, known, Sender({})).payload
        middle = time.process_time()
        codec.decode(payload, spec, known)
        seconds[0].append(middle - start)
        seconds[1].append(time.process_time() - middle)
    encode, decode = (size / statistics.median(times) / 1e6 for times in seconds)
    return encode, decode


def _enlarged(values: Floats, trace: Trace, size: int) -> Floats:
    rows = values.reshape(trace.spec.shape)
    return np.concatenate([rows] * (size // len(rows) + 1))[:size].astype(np.float32)


def measure(trace: Trace, settings: dict[str, Any]) -> dict[str, Any]:
    lengths = replay(trace, settings)
    encode, decode = speed(trace, create_codec(settings))
    found: dict[str, Any] = {"trace": trace.name, "codec": title(settings)}
    for way, length in lengths.items():
        found[way] = {
            "bits a symbol": 8 * length.payload / length.symbols,
            "range-coded bytes": length.coded,
            "ideal bytes": length.ideal / 8,
            "worst message, bytes over": max(length.worst, default=0.0),
        }
        if trace.name == "soft labels":
            found[way]["KL"] = length.divergence / length.symbols
    return {**found, "encode M/s": encode, "decode M/s": decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CODECS, action="append", help="one codec; may be repeated")
    parser.add_argument("--rounds", type=int, default=10, help="rounds to record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    table = Table(
        "trace", "codec", "up", "down", "KL up", "KL down", "over ideal", "worst", "encode M/s", "decode M/s"
    )
    for name in RECORDED:
        content = Content.WEIGHTS if name == "weights" else Content.PROBS
        if not any(content in CODECS[codec].codes for codec in arguments.only or CODECS):
            continue
        trace = record(name, arguments.rounds)
        for codec in arguments.only or CODECS:
            if content not in CODECS[codec].codes:
                continue
            if name == "soft labels" and codec == "onehot":
                continue  # the same as on labels
            for variant in VARIANTS.get(codec, [{}]):
                row = measure(trace, {"name": codec, **variant})
                rows.append(row)
                table.add_row(*_cells(row))
                print(json.dumps(row), flush=True)
    Console(width=150).print(table)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    command = f"python benchmarks/codecs.py --rounds {arguments.rounds}"
    if not arguments.only:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"command": command, **machine, "rows": rows}, indent=1) + "\n")


def _cells(row: dict[str, Any]) -> list[str]:
    coded = sum(row[way]["range-coded bytes"] for way in ("up", "down"))
    ideal = sum(row[way]["ideal bytes"] for way in ("up", "down"))
    return [
        row["trace"],
        row["codec"],
        f"{row['up']['bits a symbol']:.3f}",
        f"{row['down']['bits a symbol']:.3f}",
        *(f"{row[way]['KL']:.2g}" if "KL" in row[way] else "-" for way in ("up", "down")),
        f"{coded / ideal - 1:.2%}" if ideal else "-",
        f"{max(row[way]['worst message, bytes over'] for way in ('up', 'down')):.1f} B",
        f"{row['encode M/s']:.1f}",
        f"{row['decode M/s']:.1f}",
    ]


if __name__ == "__main__":
    main()
