"""Kinds of samples that tasks hold and models take."""

from typing import Literal

InputKind = Literal["image", "text", "table"]
"""A table stands for its rows, of which each is a sample."""

SAMPLES: dict[InputKind, str] = {"image": "images", "text": "texts", "table": "rows of tables"}
"""What samples of a kind are called in messages."""

COUNTED: dict[InputKind, str] = {"image": "images", "text": "texts", "table": "rows"}
"""What they are called where it is known of what they are, after a number."""
