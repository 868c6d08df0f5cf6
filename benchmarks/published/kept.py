"""Rows kept as data in results/: for each seed what came out, with the command and versions that made it."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(name: str, row: str, seed: int, found: dict[str, Any], command: str, published: Any = None) -> None:
    """Put a seed among those of a row of results/NAME.json."""
    kept = read(name)
    entry = kept.setdefault(row, ({} if published is None else {"published": published}) | {"seeds": {}})
    entry["seeds"][str(seed)] = {
        **found,
        "command": f"python benchmarks/published/{name.replace('-', '_')}.py {command}",
        "fedistill": version("fedistill"),
        "torch": version("torch"),
        "python": platform.python_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(row, f"seed {seed}: published {published}, ours", found, flush=True)


def read(name: str) -> dict[str, Any]:
    """The rows of results/NAME.json; none where nothing is kept yet."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
