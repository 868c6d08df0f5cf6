"""Peak memory of opening texts in a CSV file or in JSON lines, beside the size of the file.

    python benchmarks/csv_memory.py [--format csv] [--rows 3000 15000]

Each file is opened in a process of its own, as a task of four clients. Memory is what the system cannot take
back (`RssAnon`), sampled every 10 ms; on Linux alone.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
from pathlib import Path

from fedistill.config.task import TaskConfig
from fedistill.data.build import build_task

TEXT = "word " * 2000
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", choices=["csv", "json"], default="csv")
    parser.add_argument("--rows", type=int, nargs="+", default=[3000, 15000])
    asked = parser.parse_args()
    for rows in asked.rows:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=measure, args=(asked.format, rows))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def measure(form: str, rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fedistill-") as folder:
        path = Path(folder) / f"texts.{form}"
        write(path, form, rows)
        before, peak = held(), [0]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], held())

        watcher = threading.Thread(target=watch)
        watcher.start()
        build_task(
            TaskConfig.model_validate({"format": form, "train": str(path), "clients": 4, "public": 10}),
            seed=0,
            scratch=Path(folder),
        )
        done.set()
        watcher.join()
        size = path.stat().st_size
        print(f"{form}, {size / MIB:.0f} MiB: {before / MIB:.0f} MiB before, {peak[0] / MIB:.0f} MiB at most")


def write(path: Path, form: str, rows: int) -> None:
    with path.open("w", encoding="utf-8") as sink:
        if form == "csv":
            sink.write("text,label\n")
        for number in range(rows):
            text, label = f"{TEXT}{number}", "ab"[number % 2]
            line = f"{text},{label}" if form == "csv" else json.dumps({"text": text, "label": label})
            sink.write(line + "\n")


def held() -> int:
    """Bytes that the system cannot take back."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
