"""Three laws of CFD (Sattler et al., 2022, arXiv 2012.00632, figure 4 and section VI) on MNIST.

    python benchmarks/published/cfd.py [--laws bits coders] [--rounds 12] [--seeds 0 1 2]
        [--samples 1600 3200 6400] [--bits 1 2 32] [--labels digits-2 digits-4 ...] [--fraction 1]

`bits`: LeNet, 20 clients of 1,000 samples by Dirichlet .1 (figure 4), 8 of them a round, Adam 1e-3, batch 32,
2 local epochs, 3 of distillation; labels of b bits up, fp32 down, on n public samples. Published: for n >=
6,400 any b does (one bit costs less than 1 % at 51,200); halving b costs less than halving n. `best` is of
all rounds, as published.

`coders`: one bit each way; the same labels coded with and without delta coding: bits a sample, in the mean of
both directions from round 2 on. Published: delta coding pays for 10 classes and costs a little for 2 to 4.
MNIST cut down to its first C digits (IID); shirts of Fashion-MNIST, which are hard to tell apart (2: T-shirt
and shirt, 4: pullover and coat as well); and BBC news, 5 classes, 10 local epochs. With a fraction of the
clients in a round, labels are compared with older ones.

What differs: public samples are held-out MNIST in place of EMNIST, at most 6,400; 12 rounds in place of 50;
here clients draw their own batches when they distil, and so end in unlike models. Needs $FEDISTILL_DATA with
MNIST, and Fashion-MNIST for the shirts.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kept import keep

SAMPLES = (1_600, 3_200, 6_400)
BITS = (1, 2, 32)
CODERS = ("order0", "delta", "predictive")
# A set of labels: the file, the classes that it is cut down to, in the order of their new numbers.
LABELS = {
    "digits-2": ("mnist", range(2)),
    "digits-4": ("mnist", range(4)),
    "digits-10": ("mnist", range(10)),
    "shirts-2": ("fashion-mnist", (0, 6)),
    "shirts-4": ("fashion-mnist", (0, 6, 2, 4)),
    "news-5": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laws", nargs="+", choices=("bits", "coders"), default=["bits", "coders"])
    parser.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES))
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS))
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--fraction", type=float, default=1.0, help="of the clients in a round, for coders")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        tail = f"--rounds {chosen.rounds} --seeds {seed}"
        if "bits" in chosen.laws:
            for samples, bits in itertools.product(chosen.samples, chosen.bits):
                found = run(mnist(samples), up(bits), 0.4, chosen.rounds, seed)
                options = f"--laws bits --samples {samples} --bits {bits}"
                keep("cfd", f"bits, n {samples}, b {bits}", seed, found, f"{options} {tail}")
        if "coders" in chosen.laws:
            for labels, coder in itertools.product(chosen.labels, CODERS):
                with tempfile.TemporaryDirectory() as folder:
                    task = few(*LABELS[labels], Path(folder)) if LABELS[labels] else news()
                    both = {"name": "onehot", "coder": coder}
                    found = run(task, both, chosen.fraction, chosen.rounds, seed)
                name, options = labels, f"--laws coders --labels {labels}"
                if chosen.fraction < 1:
                    name += f" at {chosen.fraction:g}"
                    options += f" --fraction {chosen.fraction:g}"
                keep("cfd", f"coders, {name}, {coder}", seed, found, f"{options} {tail}")


def up(bits: int) -> dict[str, Any]:
    coded = "fp32" if bits == 32 else {"name": "simplex", "bits": bits, "coder": "delta"}
    return {"up": coded, "down": "fp32"}


def mnist(samples: int) -> dict[str, Any]:
    partition = {"kind": "dirichlet", "alpha": 0.1, "min_samples": 10}
    return {"name": "mnist", "limit": 20_000, "clients": 20, "partition": partition, "public": samples}


def few(name: str, classes: Sequence[int], folder: Path) -> dict[str, Any]:
    """Samples of some classes alone, as files, with the classes numbered anew."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = {}
    for part in ("train", "test"):
        table = pq.read_table(Path(os.environ["FEDISTILL_DATA"]) / f"{name}-{part}.parquet")
        table = table.filter(np.isin(table["label"], classes))
        labels = pa.array([list(classes).index(label) for label in table["label"].to_pylist()])
        paths[part] = str(folder / f"{part}.parquet")
        pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), paths[part])
    return {"format": "parquet", **paths, "limit": 4_000, "clients": 10, "public": 1_600}


def news() -> dict[str, Any]:
    return {"name": "bbc-news", "clients": 5, "public": 800, "text": {"length": 64, "vocabulary": 4_000}}


def run(
    task: dict[str, Any], codec: dict[str, Any], fraction: float, rounds: int, seed: int
) -> dict[str, Any]:
    from fedistill import parse
    from fedistill.experiment.runner import prepare
    from fedistill.federation.local_executor import SerialExecutor
    from fedistill.federation.round import play_round
    from fedistill.federation.setup import public_bytes, start_run

    text = task.get("name") == "bbc-news"
    model = "textcnn" if text else "lenet:lenet"
    wanted = parse(
        {
            "seed": seed,
            "rounds": rounds,
            "task": task,
            "models": {"clients": [model], "server": model},
            "train": {
                "epochs": 10 if text else 2,
                "batch_size": 32,
                "optimizer": {"name": "adam", "lr": 1e-3},
            },
            "sampling": {"fraction": fraction},
            "arms": [{"method": "cfd", "distill_epochs": 3, "codec": codec}],
        },
        "cfd",
    )
    data, (arm,) = prepare(wanted)
    state, started = start_run(arm), time.perf_counter()
    with SerialExecutor(wanted, data) as executor:
        while state.round < rounds:
            play_round(state, arm, executor)
    curve = [round(100 * record.views["server@global"], 2) for record in state.records]
    later = [entry for entry in state.ledger.entries if entry.round > 1]
    public = data.public
    assert public is not None
    ways = {way: [e.payload for e in later if e.direction == way] for way in ("up", "down")}
    labels = len(public) * len(later)
    return {
        "curve": curve,
        "best": max(curve),
        "last": curve[-1],
        "bytes_up": sum(e.bytes for e in state.ledger.entries if e.direction == "up"),
        "bits_a_sample": {
            "both": round(8 * sum(map(sum, ways.values())) / labels, 3),
            **{way: round(8 * sum(sizes) / len(sizes) / len(public), 3) for way, sizes in ways.items()},
        },
        "bytes_public": public_bytes(arm),
        "rounds": rounds,
        "seconds": round(time.perf_counter() - started),
    }


if __name__ == "__main__":
    main()
