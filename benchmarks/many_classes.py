"""Labels of 1,000 classes: processor time and memory of the codecs of soft labels, as messages grow.

    python benchmarks/many_classes.py [--repeats 3]

Rows are softmaxes of normal logits with standard deviation 6. Each codec and size has a process of its own;
the first message is measured, for which both sides know nothing yet. Memory is the process's peak above what
it held with the rows made.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kept import keep

RESULTS = Path(__file__).parent / "results" / "many_classes.json"
CLASSES = 1_000
CODECS = ({"name": "onehot"}, {"name": "simplex", "bits": 2}, {"name": "simplex", "bits": 4})
SIZES = (5_000, 50_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="messages of each setting")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        codec, samples = arguments.measure
        print(json.dumps(measure(json.loads(codec), int(samples), arguments.repeats)))
        return
    for samples in SIZES:
        for codec in CODECS:
            command = [sys.executable, __file__, "--repeats", str(arguments.repeats), "--measure"]
            asked = [*command, json.dumps(codec), str(samples)]
            found = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
            name = ", ".join(str(value) for value in codec.values())
            print(f"{samples:,} x {CLASSES:,}, {name}: {found}", flush=True)
            about = {
                "command": f"python benchmarks/many_classes.py --repeats {arguments.repeats}",
                "python": platform.python_version(),
                "numpy": version("numpy"),
                "date": time.strftime("%Y-%m-%d"),
            }
            keep(RESULTS, f"{samples} x {CLASSES}", name, {**about, **found})


def measure(settings: dict[str, Any], samples: int, repeats: int) -> dict[str, Any]:
    import numpy as np

    from fedistill.communication.codecs.base import Sender
    from fedistill.communication.codecs.registry import create_codec
    from fedistill.communication.tensor_specs import Content, SharedKnowledge, TensorSpec

    random = np.random.default_rng(0)
    values = np.exp(6 * random.standard_normal((samples, CLASSES), dtype=np.float32))
    values /= values.sum(axis=1, keepdims=True)
    codec, known = create_codec(settings), SharedKnowledge()
    spec = TensorSpec(Content.PROBS, (samples, CLASSES), rows=np.arange(samples), population=samples)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        started = time.process_time()
        payload = codec.encode(values, spec, known, Sender({})).payload
        written = time.process_time()
        codec.decode(payload, spec, known)
        seconds[0].append(written - started)
        seconds[1].append(time.process_time() - written)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "encode": round(statistics.median(seconds[0]), 4),
        "decode": round(statistics.median(seconds[1]), 4),
        "bytes": len(payload),
        "memory": (peak - held) * 1024,
    }


if __name__ == "__main__":
    main()
