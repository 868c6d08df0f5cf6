"""docs/flagship.py: what an accuracy costs, of rows counted by hand."""

from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def row(*curve: tuple[int, float]) -> dict[str, Any]:
    found = [list(point) for point in curve]
    return {"curve": found, "multiply_adds": 3_000_000, "memory": 2_000, "public": 5_000}


@pytest.fixture
def flagship(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    import flagship

    return flagship


def test_cells_are_medians_and_ranges_over_seeds(flagship: Any) -> None:
    arms = {
        "bridge": {"0": row((1000, 0.5), (3000, 0.8)), "1": row((2000, 0.8)), "2": row((4000, 0.6))},
        "local": {"0": row()},
    }
    *_, one = flagship.costs(arms, (0.5, 0.8, 0.9)).splitlines()
    middle = "2 kB (1 kB to 4 kB) | 3 kB (2 kB to never) | -"
    assert one == f"| bridge | {middle} | 73.3% ± 11.5% | 3 kB | 8 kB | 3 M | 2 kB | 3 |"


def test_the_ratio_is_over_seeds_that_ours_and_rivals_have(flagship: Any) -> None:
    """The best is 0.8, so 0.76 counts: ours has it for 1,000, and `ridge` for 5,000 bytes."""
    arms = {
        "bridge": {"0": row((1000, 0.8))},
        "bridge-500": {"0": row((500, 0.8))},
        "ridge": {"0": row((5000, 0.79)), "1": row((100, 0.9))},
        "voting": {"0": row((2500, 0.77)), "1": row((10, 0.95))},
        "random-mask": {"0": row((7000, 0.78))},
        "random-mask-long": {"1": row((20, 0.95))},
        "local": {"0": row((1, 0.99))},
    }
    assert flagship.lead(arms, "bridge") == (
        "With 1 seed (0), to 76.0%, 95 % of the best accuracy: `bridge` sends 1 kB, the best rival, `voting`,"
        " 2.5 kB, a ratio of 0.40. The best of ours here: `bridge-500` sends 500 B, the best rival, `voting`,"
        " 2.5 kB, a ratio of 0.20. Without public data at the clients: `random-mask` sends 7 kB, the best"
        " rival, `ridge`, 5 kB, a ratio of 1.40."
    )


def test_rivals_and_ours_may_never_come_there(flagship: Any) -> None:
    ours, theirs = {"0": row((1000, 0.8))}, {"0": row((1000, 0.5))}
    goal = "With 1 seed (0), to 76.0%, 95 % of the best accuracy: "
    assert flagship.lead({"bridge": ours, "ridge": theirs}, "bridge") == (
        f"{goal}`bridge` sends 1 kB; of no rival do most seeds get there."
    )
    assert flagship.lead({"bridge": theirs, "ridge": ours}, "bridge") == (
        f"{goal}`bridge` does not get there, the best rival, `ridge`, 1 kB."
    )


def test_no_seed_may_be_common(flagship: Any) -> None:
    found = flagship.lead({"bridge": {"0": row((1, 0.5))}, "ridge": {"1": row((1, 0.5))}}, "bridge")
    assert found == "Ours and its rivals have no seed in common yet."
