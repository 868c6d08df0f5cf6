"""What the page of a run shows of its settings."""

import tomllib
from typing import Any

import pytest

from fedistill.config.toml import parse
from fedistill.experiment.shown_settings import shown_settings

RAW: dict[str, Any] = {
    "rounds": 2,
    "task": {
        "format": "csv",
        "train": ["/home/somebody/articles.csv", "/data/more.csv"],
        "public": {"format": "csv", "train": "C:\\shared\\public.csv", "samples": 100},
        "partition": {"kind": "natural", "column": "site"},
        "text": {"length": 64, "tokenizer": "/models/tokenizer.json"},
    },
    "models": {"clients": ["bag"], "server": "bag"},
    "train": {"epochs": 3, "optimizer": {"name": "adam", "lr": 0.01}},
    "arms": [
        {"method": "fedavg"},
        {"method": "dsfl", "models": {"start": "/runs/old"}, "train": {"optimizer": {"lr": 0.02}}},
    ],
}


def shown(raw: dict[str, Any], kind: str, transport: dict[str, int] | None = None) -> dict[str, Any]:
    results: Any = {
        "task": {"kind": kind},
        "arms": [{"rounds": [], "bytes_transport": sum((transport or {}).values())}],
    }
    return tomllib.loads(shown_settings(parse(raw, "test"), results))


def test_of_paths_the_names_are_shown() -> None:
    found = shown(RAW, "text")["task"]
    assert found["train"] == ["articles.csv", "more.csv"]
    assert found["public"]["train"] == "public.csv"
    assert found["text"] == {"length": 64, "vocabulary": 8000, "tokenizer": "tokenizer.json"}


def test_arms_show_what_is_their_own() -> None:
    fedavg, dsfl = shown(RAW, "text")["arms"]
    assert set(fedavg) & {"models", "train"} == set()
    assert dsfl["models"] == {"start": "old"}
    assert dsfl["train"] == {"optimizer": {"lr": 0.02}}


@pytest.mark.parametrize("kind", ["image", "text"])
def test_settings_of_other_kinds_of_data_and_of_networks_are_left_out(kind: str) -> None:
    raw = {
        **RAW,
        "task": {"name": "digits", "clients": 4},
        "models": {"clients": ["mlp-s"], "server": "mlp-s"},
    }
    raw["arms"] = [{"method": "fedavg"}]
    found = shown(raw, kind)
    assert ("text" in found["task"]) == (kind == "text")
    assert set(found["task"]) & {"encoding", "missing", "drop_missing", "relabel", "exclude_classes"} == set()
    assert "flower" not in found
    assert "flower" in shown(raw, kind, transport={"up": 10, "down": 20})


def test_what_is_used_is_shown_with_its_defaults() -> None:
    found = shown(RAW, "text")
    assert found["task"]["encoding"] == "utf-8"
    assert found["train"]["epochs"] == 3
    assert found["sampling"] == {"fraction": 1.0, "dropout": 0.0}
