"""Makes docs/public-data.md from what benchmarks/public_data.py has measured; for `docs/generate.py`."""

import json
from pathlib import Path
from typing import Any

from writing import made_by, table

from fedistill.config.units import format_bytes

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "public-data.json"
TARGETS = (0.70, 0.75, 0.78, 0.80)
WITHOUT = ("fedavg", "feddf")
"""Arms whose clients need no public data."""
WAYS = (
    "2000 images",
    "200 images, WebP",
    "60 images, WebP",
    "made of 40",
    "made of 20",
    "made of 10",
    "1000 made of 20",
    "drawn",
)

WRITE = """\
Methods that label public samples need the same samples at the server and at every client. If the clients do
not have them already, somebody has to send them, and a plain copy of 2,000 small images for each of ten
clients costs more than all rounds. In `[task]`, `public` says which samples they are and what is sent:"""
KIND_HEADS = ("`public =`", "samples", "what is sent to each client (`bytes_public`)")
KINDS = (
    ("2000", "2,000 that are held out of the training data", "the images, as a Parquet file"),
    ('{ name = "mnist", samples = 2000 }', "2,000 of another data set", "the images, as a Parquet file"),
    (
        "{ samples = 200, quality = 0 }",
        "200 that are held out, as they look after WebP of this quality, 0 to 100",
        "one WebP file of all",
    ),
    (
        "{ samples = 2000, images = 20, quality = 0 }",
        "2,000 that both ends make of 20",
        "one WebP file of the 20",
    ),
    ("{ samples = 2000, images = 0 }", "2,000 that both ends draw", "nothing"),
)
HOW = """\
All but the number go together with `name` or `format` and `train`, except `images = 0`, which needs no data.

**Made.** A few images make any number of others: a view of one (mirrored or not, zoomed by up to a
quarter, slanted and moved a little), a mixture of two views, or one view beside another, cut along a line.
Every other image is seen through one to six random shapes, and is black elsewhere.

**Drawn.** One to six ellipses, rectangles and diamonds on black, in one colour or with a smooth texture; half
of the images are mirrored onto themselves.

What is made or drawn follows from the seed of the experiment. Only whole numbers are drawn and computed
with, so all machines make the same images to the last bit.

Made and drawn samples have no labels, so the control `server-alone` cannot use them. Texts are not made.
`bytes_public` of an arm in results.json is what is sent to all clients together; with `bytes_total` it makes
everything that crosses. Methods that use public samples at the server alone are charged nothing for them."""
SETTING = """\
Fashion-MNIST: 10 clients with skewed shares of 10,000 images (Dirichlet 0.3), all of them with cnn-s, as the
server has; 5 local epochs with balanced softmax, batches of 32, SGD at 0.02 with momentum 0.9. `bridge` with
`stc(share=0.02)`; `voting`, and `dsfl` with `simplex(bits=2)`, with prior-corrected pooling and
`distill_epochs = 3`; `fedavg` and `feddf`, whose clients have no public data, with `stc(share=0.05)`. A cell
has the bytes of everything, public data included, both directions and all clients, until the server's model
first reaches the accuracy on 3,000 training images that no client has. The test set is not read. `made of 20`
are 2,000 samples, made of 20 images; WebP has quality 0."""
FOUND = """\
x"""
MADE = """\
A row is made by `python benchmarks/public_data.py TRAIN.parquet --seed SEED --ways WAY --arms ARM`; each is
kept with its command in `benchmarks/results/public-data.json`."""


def page(command: str) -> str:
    """The text of docs/public-data.md."""
    kept: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    kinds = table(KIND_HEADS, [(f"`{public}`", samples, sent) for public, samples, sent in KINDS])
    parts = [made_by(command, "docs/public_data.py"), "# Public data", WRITE, kinds, HOW]
    parts += ["## What it brings", SETTING]
    for seed, rows in kept.items():
        parts += [f"### {seed.capitalize()}", _costs(rows)]
    parts += ["## What was found", FOUND, MADE]
    return "\n\n".join(parts) + "\n"


def _costs(rows: dict[str, Any]) -> str:
    """A row for each arm and public set, arms together."""
    arms = dict.fromkeys(name.split("/")[1] for name in rows)
    found = []
    for arm in arms:
        for way in ("2000 images",) if arm in WITHOUT else WAYS:
            if row := rows.get(f"{way}/{arm}"):
                found.append(_cells(arm, way, row))
    heads = ("arm", "public data", "their bytes", *(f"{target:.0%}" for target in TARGETS), "last", "bytes")
    return table(heads, found)


def _cells(arm: str, way: str, row: dict[str, Any]) -> tuple[str, ...]:
    public, points = row["public"], row["curve"]
    costs = []
    for target in TARGETS:
        sent = next((sent for sent, reached in points if reached >= target), None)
        costs.append("-" if sent is None else format_bytes(sent + public))
    shown = {"fedavg": "none", "feddf": "at the server"}.get(arm, way)
    last, accuracy = points[-1]
    return f"`{arm}`", shown, format_bytes(public), *costs, f"{accuracy:.1%}", format_bytes(last + public)
