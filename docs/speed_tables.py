"""Makes tables and plots of docs/speed.md of what benchmarks/speed.py and peers.py have measured."""

import json
from pathlib import Path
from typing import Any

import bars
from writing import between, table

DOCS = Path(__file__).parent
PAGE = DOCS / "speed.md"
LOOPS_PLOT, PEERS_PLOT = "assets/speed-loops.svg", "assets/speed-peers.svg"
RESULTS = DOCS.parent / "benchmarks" / "results"
Rows = dict[str, dict[str, dict[str, Any]]]

WORKLOADS = {
    "W1": "FedAvg, 20 clients x 1,000 images, `cnn-s`",
    "W2": "DS-FL, the same and 2,000 public images",
    "W3": "FedAvg, 1,000 clients x 20 images, `cnn-s`",
    "W4": "FedAvg, 200 clients x 100 images, `mlp-s`",
    "W5": "FedAvg, 10,000 clients x 6 images, 200 in a round, `mlp-s`",
    "W8": "DS-FL, 10 clients x 1,000 images, 2,000 public, `cnn-s`, and `cnn-m` at the server",
}
FORMS = {
    "fedistill": "",
    "fedistill, fast": " with `runtime.fast`",
    "fedistill, 2 server threads": " with `runtime.server_threads = 2`",
}
AIMS = {
    ("W1", "fedistill"): 0.28,
    ("W2", "fedistill"): 0.29,
    ("W3", "fedistill"): 0.40,
    ("W4", "fedistill"): 0.60,
    ("W4", "fedistill, fast"): 0.30,
    ("W5", "fedistill"): 0.90,
    ("W5", "fedistill, fast"): 0.35,
}
"""Of the time of loop (a)."""
SIDES = {
    "loop": "the loop without a framework",
    "exact": "fedistill, exact: the default",
    "fast": "fedistill, `runtime.fast`",
    "pfl": "pfl",
    "fluke": "fluke",
    "flower": "Flower, simulation",
}
PEERS = ("W1", "W4", "W5")


def page() -> str:
    """The text of docs/speed.md with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in {"loops": loops(_kept("speed")), "peers": peers(_kept("peers"))}.items():
        text = between(text, name, made, PAGE.name)
    return text


def plots() -> dict[Path, str]:
    """The plots, by file."""
    speed, others = _kept("speed"), _kept("peers")
    rounds = {
        name: {
            form: seconds / speed[name]["now"]["medians"]["a"]
            for form, seconds in medians.items()
            if form != "a"
        }
        for name, medians in ((name, speed[name]["now"]["medians"]) for name in WORKLOADS)
    }
    against = {
        name: {
            side: others[name][side]["ratios"]["processor"]
            for side in SIDES
            if "ratios" in others[name][side]
        }
        for name in PEERS
    }
    return {
        DOCS / LOOPS_PLOT: bars.draw(
            "Time of a round, of that of a plain loop in one process with two threads (a)",
            rounds,
            (*FORMS, "b", "c"),
            2.0,
        ),
        DOCS / PEERS_PLOT: bars.draw(
            "Processor time of a round, of that of a loop without a framework", against, (*SIDES,), 4.0
        ),
    }


def loops(kept: Rows) -> str:
    """A row for each workload and form of fedistill: its time as a ratio to those of the loops."""
    rows = []
    for name, what in WORKLOADS.items():
        row = kept[name]["now"]
        for form, how in FORMS.items():
            if form in row["ratios"]:
                aim = AIMS.get((name, form))
                rows.append(
                    (
                        f"{name}: {what}" if not how else f"{name}{how}",
                        *(f"{row['ratios'][form][loop]:.2f}" for loop in "abc"),
                        f"{row['medians'][form]:.2f} s",
                        f"{row['peak_bytes'][form] / 1e6:.0f} MB",
                        "-" if aim is None else f"{aim:.2f}",
                    )
                )
    return (
        table(("", "of (a)", "of (b)", "of (c)", "a round", "memory", "aim, of (a)"), rows)
        + "\n\n"
        + _when(kept, "now")
    )


def peers(kept: Rows) -> str:
    """A row for each side: processor time of a round of each workload, to the loop's, and its memory."""
    rows = []
    for side, what in SIDES.items():
        cells = []
        for name in PEERS:
            row = kept[name][side]
            if "ratios" in row:
                cells.append(f"{row['ratios']['processor']:.2f} ({row['seconds'][0]:.1f} s)")
                cells.append(f"{row['peak_bytes'] / 1e6:,.0f} MB, {row['accuracy']:.2f}")
            else:
                cells += ["-", ""]
        rows.append((what, *cells))
    heads = [head for name in PEERS for head in (name, "memory, accuracy")]
    return table(("processor time, to the loop (first round)", *heads), rows) + "\n\n" + _when(kept, "loop")


def _when(kept: Rows, row: str) -> str:
    about = [rows[row] for rows in kept.values()]
    dates = sorted({one["date"] for one in about})
    return f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."


def _kept(name: str) -> Rows:
    kept: Rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return kept
