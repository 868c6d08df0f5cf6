"""Makes docs/label-skew.md from what benchmarks/skew.py has measured; `docs/generate.py` writes it."""

import json
import re
from pathlib import Path
from typing import Any

from writing import made_by, table

from fedistill.config.units import format_bytes

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "skew.json"

SETTING = """\
What helps where each client has few classes, and what does not. `fedistill doctor` advises the first pair
of this page where labels are strongly skewed and pooled; it says how skewed an experiment's are (0 even, 1
apart).

Fashion-MNIST, 10 clients, one convolutional network of 106,000 weights at clients and server, one local
epoch of SGD (0.02, momentum 0.9), batches of 32; `full` has 20,000 private and 8,000 public images, `small`
a quarter. All is judged on 3,000 held-out training images; the test set is never read. A row is a local
loss and what the server does: pool soft labels (`dsfl`), pool votes (`voting`), average weights (`fedavg`),
or another method with its own defaults (`-prior`: with prior-corrected labels). `prior-3` is
prior-corrected pooling of sharpness 3. Figures are the server's accuracy (for COMET, which has no server
model, the clients' mean) after round 5."""
FOUND = """\
What holds: *balanced softmax at the client with prior-corrected pooling at the server*. The one keeps a
client's model from answering what it has most of, the other takes out what of that is left in its answers.
FedNTD's not-true loss in place of balanced softmax is about as good; both together are not better. Votes
with the same pair keep most of it for a three-hundredth of the bytes. Prior correction alone, or balanced
softmax alone, is half of the way. Clients who answer only what is like their own data (`edge-fd`) do as
well without. SCARLET's published defaults are meant for hundreds of rounds; of its few labels a round,
prior correction makes more while the cache fills, and little after.

What does not: entropy reduction, a plain mean, medians and trimmed means. The robust ones are worst of all:
what few clients know is an outlier to them. Confidence weighs those who have seen one class only as sure.
Dawid-Skene does well at first and no better than a majority later. Label smoothing is worth nothing here."""
BY_ALPHA = """\
How much the pair gains by how skewed the partition is, at `small`: the less, the less skewed. Other tasks
and more rounds can turn a small lead round, so that `doctor` advises it from a skew of 0.55 on."""


def page(command: str) -> str:
    """The text of docs/label-skew.md."""
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = [
        made_by(command, "docs/label_skew.py"),
        "# Label skew",
        SETTING,
        FOUND,
        "## Dirichlet 0.1, full",
        "After rounds 1 to 5, for each seed; bytes of both directions and all clients, without public data.",
        _arms(kept, "full", curves=True),
        "## Dirichlet 0.1, small",
        _arms(kept, "small", curves=False),
        "## By skew",
        BY_ALPHA,
        _by_alpha(kept),
        "`python benchmarks/skew.py TRAIN.parquet --scale SCALE --alpha ALPHA --seed SEED --arms ARM` makes a"
        " row; each is kept with its command in `benchmarks/results/skew.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _arms(kept: dict[str, dict[str, Any]], scale: str, curves: bool) -> str:
    """Arms from best to worst by the first seed that they have."""
    seeds = [group for name, group in kept.items() if name.startswith(f"{scale}, alpha 0.1,")]
    arms = dict.fromkeys(arm for group in seeds for arm in group)
    rows = []
    for arm in arms:
        found = [group.get(arm) for group in seeds]
        first = next(one for one in found if one)
        shown = [_curve(one, curves) for one in found]
        rows.append((first["accuracy"][-1], (f"`{arm}`", *shown, format_bytes(first["bytes"]))))
    rows.sort(key=lambda row: -row[0])
    heads = ("arm", *(f"seed {number}" for number in range(len(seeds))), "bytes")
    return table(heads, [row for _, row in rows])


def _curve(found: dict[str, Any] | None, whole: bool) -> str:
    if found is None:
        return "-"
    values = [f"{100 * value:.1f}" for value in found["accuracy"]]
    return " ".join(values) if whole else values[-1]


def _by_alpha(kept: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, group in kept.items():
        asked = re.fullmatch(r"small, alpha ([\d.]+), seed (\d+)", name)
        arms = ("cross-entropy/era", "balanced/prior-3")
        if asked and all(arm in group for arm in arms):
            before, after = (100 * group[arm]["accuracy"][-1] for arm in arms)
            skew = group[arms[0]]["label_skew"]
            gain = f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"
            rows.append((-skew, (asked[1], asked[2], f"{skew:.2f}", *gain)))
    heads = ("Dirichlet", "seed", "skew", "`dsfl` as it is", "with the pair", "gain")
    return table(heads, [cells for _, cells in sorted(rows)])
