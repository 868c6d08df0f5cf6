"""Three laws of CFD (Sattler et al., 2022, arXiv 2012.00632, figure 4 and section VI) on MNIST.

    python benchmarks/published/cfd.py [--laws bits coders] [--alpha 0.1] [--rounds 6] [--seed 0]

`bits`: LeNet, 20 clients of 1,000 samples by Dirichlet .1 (figure 4), 8 of them a round, Adam 1e-3, batch
32, 2 local epochs, 3 of distillation; labels of b bits up, fp32 down, on n public samples. Published: for n
>= 6,400 any b does (one bit costs less than 1 % at 51,200); halving b costs less than halving n. `best` is
of all rounds, as published.

`coders`: one bit each way; the same labels coded with and without delta coding: bits a sample, in the mean
of both directions from round 2 on. Published: delta coding pays for 10 classes and costs a little for 2 to
4. MNIST cut down to its first C digits (IID), and BBC news, C = 5.

What differs: public samples are held-out MNIST in place of EMNIST, at most 6,400; 6 rounds in place of 50;
here clients draw their own batches when they distil, and so end in unlike models. Needs $FEDISTILL_DATA
with MNIST.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cfd.json"
COMMAND = "python benchmarks/published/cfd.py"
SAMPLES = (1_600, 3_200, 6_400)
BITS = (1, 2, 32)
CODERS = ("order0", "delta", "predictive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laws", nargs="+", choices=("bits", "coders"), default=["bits", "coders"])
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if "bits" in arguments.laws:
        for samples in arguments.samples:
            for bits in BITS:
                found = run(mnist(samples, arguments.alpha), up(bits), arguments)
                name = f"bits, alpha {arguments.alpha:g}, n {samples}, b {bits}"
                keep(name, found, f"--laws bits --alpha {arguments.alpha:g}", arguments)
    if "coders" in arguments.laws:
        for classes in (2, 4, 10, 5):
            for coder in CODERS:
                with tempfile.TemporaryDirectory() as folder:
                    task = news() if classes == 5 else digits(classes, Path(folder))
                    both = {"name": "onehot", "coder": coder}
                    keep(
                        f"coders, C {classes}, {coder}",
                        run(task, both, arguments),
                        "--laws coders",
                        arguments,
                    )


def up(bits: int) -> dict[str, Any]:
    coded = "fp32" if bits == 32 else {"name": "simplex", "bits": bits, "coder": "delta"}
    return {"up": coded, "down": "fp32"}


def mnist(samples: int, alpha: float) -> dict[str, Any]:
    partition = {"kind": "dirichlet", "alpha": alpha, "min_samples": 10}
    return {"name": "mnist", "limit": 20_000, "clients": 20, "partition": partition, "public": samples}


def digits(classes: int, folder: Path) -> dict[str, Any]:
    """MNIST's first so many digits, as files."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    paths = {}
    for part in ("train", "test"):
        table = pq.read_table(Path(os.environ["FEDISTILL_DATA"]) / f"mnist-{part}.parquet")
        paths[part] = str(folder / f"{part}.parquet")
        pq.write_table(table.filter(pc.less(table["label"], classes)), paths[part])
    return {"format": "parquet", **paths, "limit": 4_000, "clients": 10, "public": 1_600}


def news() -> dict[str, Any]:
    return {"name": "bbc-news", "clients": 5, "public": 800, "text": {"length": 64, "vocabulary": 4_000}}


def run(task: dict[str, Any], codec: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    from fedistill import parse
    from fedistill.experiment import prepare
    from fedistill.round import begin, play
    from fedistill.runtime.inprocess import Serial

    text = task.get("name") == "bbc-news"
    model = "textcnn" if text else "lenet:lenet"
    wanted = parse(
        {
            "seed": arguments.seed,
            "rounds": arguments.rounds,
            "task": task,
            "models": {"clients": [model], "server": model},
            "train": {"epochs": 2, "batch_size": 32, "optimizer": {"name": "adam", "lr": 1e-3}},
            "sampling": {"fraction": 0.4 if task["clients"] == 20 else 1.0},
            "arms": [{"method": "cfd", "distill_epochs": 3, "codec": codec}],
        },
        "cfd",
    )
    data, (arm,) = prepare(wanted)
    state, started = begin(arm), time.perf_counter()
    with Serial(wanted, data) as runtime:
        while state.round < arguments.rounds:
            play(state, arm, runtime)
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
        "bytes_public": arm.public_bytes(),
        "seconds": round(time.perf_counter() - started),
    }


def keep(name: str, found: dict[str, Any], options: str, arguments: argparse.Namespace) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[name] = {
        **found,
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "command": f"{COMMAND} {options} --rounds {arguments.rounds} --seed {arguments.seed}",
        "fedistill": version("fedistill"),
        "torch": version("torch"),
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(name, found["curve"], found["bits_a_sample"], f"{found['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
