"""Makes docs/label-skew.md from what benchmarks/skew.py has measured; `docs/generate.py` writes it."""

import json
import re
from pathlib import Path
from typing import Any

from writing import chosen_settings, made_by, table

from fedistill.config.units import format_bytes

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "skew.json"

SETTING = """\
What helps if each client has few classes, and what does not. `fedistill doctor` shows how skewed the
labels of an experiment are, from 0 (even) towards 1 (disjoint), and advises the two settings below
if they are strongly skewed and the method pools labels.

All figures are for Fashion-MNIST: 10 clients with 5,000 images in all, 1,000 public ones, mlp-s at
clients and server, batches of 32, SGD with momentum 0.9. Accuracy is measured after 8 rounds on 3,000
training images that were held out; the test set is never read. Each arm is tuned by 8 trials of 3
rounds, on further training images, at Dirichlet 0.1 and seed 0: local epochs 1, 3 or 8; learning rate
0.02, a third or three times of it; epochs on the pooled labels 1 or 3. Its best settings are carried
over to the other seeds and partitions. The name of a row gives a local loss and what the server does:
pool soft labels, pool votes (`votes`), average weights (`fedavg`), or another method with its own
defaults (with `-prior`, prior-corrected labels). `prior-3` is prior-corrected pooling with sharpness 3.
Figures are the server's accuracy; for COMET, which has no server model, the clients' mean."""
FOUND = """\
**Training for longer between exchanges comes first.** Tuned, nearly all arms take eight local epochs, and
come closer to each other: with one, plain labels (`mean`) reach 52 % of validation images, prior-
corrected ones 69, those of clients with balanced softmax 60, and both together 70 (seed 0, 3 rounds);
with eight 65, 75, 74 and 74.

**Prior-corrected pooling is what remains worth setting.** It removes what a client's mix of classes
leaves in its answers. On held-out images it is 7 to 11 points above `era` and `mean` (seed 0), and with
balanced softmax 3 points (both seeds). Balanced softmax, which keeps a client's model from favouring its
most frequent classes, does much on seed 0 and nothing on seed 1; for `fedavg` one point, or less than
nothing. FedNTD's not-true loss is no better.

**Votes with the pair lose nothing against soft labels**, for a four-hundredth of the bytes. Weights end
three to five points above both, for five times the bytes of soft labels. `reliability`, the defence
against clients that lie, costs honest clients nothing; neither does the median. `edge-fd`, whose clients
answer only samples that resemble their own data, is no better than `era` here.

**What a trial of 3 rounds likes may not last:** `dawid-skene` and `not-true/prior-3` lost 14 and 6 points
between the trials and the end."""
BY_ALPHA = """\
How much the pair gains depends on how skewed the partition is. Both arms keep the settings that were
tuned at Dirichlet 0.1: so trained, the pair gains three points there, about one with 0.2, and loses one
or so from 0.3 on. `doctor` advises it for a skew of 0.55 or more, to experiments as they are: with one
local epoch it gained 13 to 39 points from there on, and 1 to 20 below (a small CNN, 5 rounds)."""


def page(command: str) -> str:
    """The text of docs/label-skew.md."""
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = [
        made_by(command, "docs/label_skew.py"),
        "# Label skew",
        SETTING,
        FOUND,
        "## Dirichlet 0.1",
        "Bytes are sums over both directions and all clients, without public data, for seed 0.",
        _arms(kept),
        "## By skew",
        BY_ALPHA,
        _by_alpha(kept),
        "A row is made by `python benchmarks/skew.py TRAIN.parquet --alpha ALPHA --seed SEED --arms ARM`;"
        " each is kept with its command in `benchmarks/results/skew.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _arms(kept: dict[str, dict[str, Any]]) -> str:
    """Arms from best to worst by the mean over seeds."""
    seeds = {name.split()[-1]: group for name, group in kept.items() if name.startswith("alpha 0.1,")}
    rows = []
    for arm, first in next(iter(seeds.values())).items():
        found = [group[arm]["accuracy"][-1] for group in seeds.values() if arm in group]
        shown = [
            f"{100 * group[arm]['accuracy'][-1]:.1f}" if arm in group else "-" for group in seeds.values()
        ]
        gained = f"{100 * first['own']:.1f} → {100 * first['best']:.1f}"
        cells = f"`{arm}`", *shown, format_bytes(first["bytes"]), gained, chosen_settings(first["settings"])
        rows.append((sum(found) / len(found), cells))
    rows.sort(key=lambda row: -row[0])
    heads = ("arm", *(f"seed {seed}" for seed in seeds), "bytes", "tuning", "settings")
    return table(heads, [cells for _, cells in rows])


def _by_alpha(kept: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, group in kept.items():
        asked = re.fullmatch(r"alpha ([\d.]+), seed (\d+)", name)
        arms = ("cross-entropy/era", "balanced/prior-3")
        if asked and all(arm in group for arm in arms):
            before, after = (100 * group[arm]["accuracy"][-1] for arm in arms)
            skew = group[arms[0]]["label_skew"]
            gain = f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"
            rows.append((-skew, (asked[1], asked[2], f"{skew:.2f}", *gain)))
    heads = ("Dirichlet", "seed", "skew", "`dsfl` as it is", "with the pair", "gain")
    return table(heads, [cells for _, cells in sorted(rows)])
