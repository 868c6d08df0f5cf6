#!/usr/bin/env bash
# wandb keeps an offline run in a folder that is named by the second in which it began and by its id. A run
# that is finished and begun again within that second, with the same id and `resume="allow"`, gets the same
# folder and writes over its file: what was logged before is gone, without a warning. Begun again a second
# later, it has a folder of its own, and `wandb sync` joins the two.
#
# Seen with wandb 0.31.0, Python 3.11: one folder for two runs, in whose file the first value that was
# logged is not found; two folders after a second.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wandb==0.31.0
cd "$folder"
WANDB_MODE=offline WANDB_SILENT=true venv/bin/python - <<'PYTHON'
import time
from pathlib import Path

import wandb

WORDS = "first", "second"


def play(name: str, pause: float) -> list[Path]:
    """Log a word in each of two runs of one id, and return their files."""
    Path(name).mkdir()
    settings = wandb.Settings(console="off")
    time.sleep(1 - time.time() % 1)  # both begin early in a second
    for word in WORDS:
        run = wandb.init(
            project="p", id=name, resume="allow", dir=name, reinit="create_new", settings=settings
        )
        run.log({"word": word})
        run.finish()
        time.sleep(pause)
    return sorted(Path(name).glob("wandb/offline-run-*/*.wandb"))


for attempt in range(10):  # a slow machine may need more than a second, above all the first time
    at_once = play(f"once{attempt}", 0)
    if len(at_once) == 1:
        break
later = play("later", 1.1)
kept = {word for word in WORDS for file in at_once if word.encode() in file.read_bytes()}
print(f"within a second: {len(at_once)} file that has {sorted(kept)}; with a pause: {len(later)} files")
assert len(later) == 2
assert len(at_once) == 1, "two runs of one second have folders of their own"
assert kept == {"second"}, "nothing was lost"
PYTHON
