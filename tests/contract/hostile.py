"""Complete frames with hostile content, sent to the server of every method by one client among honest ones.

Each case changes an honest reply at random (`helpers.lies.random_lie`). Held of it: the server refuses
it, and leaves out its sender and nobody else; or it takes it. One in `LEARNED` of those that it takes goes
through the server's step, which must not fail, and must leave finite numbers::

    PYTHONPATH=tests python tests/contract/hostile.py --cases 100000 --seed 0
"""

import argparse
from collections import Counter
from random import Random

import pytest
import torch
from rich.progress import track

from fedistill.methods.registry import METHODS
from helpers.lies import LIAR, Scene, random_lie
from helpers.method_rows import ROWS, Row

WITH_UPLINK = [row for row in ROWS if METHODS[row.method].uplink is not None]
LEARNED = 20
SAID = "its reply is refused: "


class Failure(AssertionError):
    """A case with another outcome."""


def check(row: Row, cases: int, seed: int) -> Counter[str]:
    """Send so many lies to the server of a method; return how often each thing came of them.

    Raises:
        Failure: something else came of one; names the method, the seed and the case.
    """
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        scene = Scene(row, patch)
    for case in range(cases):
        lie = random_lie(scene.sent[LIAR], Random(f"{seed} {row.name} {case}"))
        what = f"{row.name}, seed {seed}, case {case}"
        try:
            refused = scene.refused(lie)
            if refused and not (list(refused) == [LIAR] and refused[LIAR].startswith(SAID)):
                raise Failure(f"{what}: {refused}")
            counts["refused" if refused else "taken"] += 1
            if not refused and counts["taken"] % LEARNED == 1:
                scene.learn_from(lie)
                counts["learned from"] += 1
        except Failure:
            raise
        except Exception as error:
            raise Failure(f"{what}: {error!r}") from error
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=[row.name for row in WITH_UPLINK], metavar="NAME")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in WITH_UPLINK if not wanted.methods or row.name in wanted.methods]
    total: Counter[str] = Counter()
    for row in track(rows, description="methods"):
        counts = check(row, -(-wanted.cases // len(rows)), wanted.seed)
        total += counts
        print(said(row.name, counts), flush=True)
    print(said("all", total))


def said(name: str, counts: Counter[str]) -> str:
    return " ".join([f"{name:24}", *(f"{number:8,} {what}" for what, number in sorted(counts.items()))])


if __name__ == "__main__":
    main()
