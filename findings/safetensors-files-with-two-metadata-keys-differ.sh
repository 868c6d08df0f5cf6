#!/usr/bin/env bash
# safetensors writes the keys of a file's metadata in an order that differs from one save to the next, in one
# process too. So the same tensors with the same metadata make different files as soon as there are two keys,
# and a digest of a saved model does not tell whether it has changed. With one key all files are equal;
# tensors are always in the same order.
#
# Seen with safetensors 0.8.0, numpy 2.4.6, Python 3.11: 20 saves with eight keys make 20 different files,
# and with one key, one file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import load, save

tensors = {"weight": np.arange(6, dtype=np.float32), "bias": np.zeros(2, np.float32)}


def files(keys: str) -> set[bytes]:
    return {save(tensors, {key: "same" for key in keys}) for _ in range(20)}


one, eight = files("a"), files("abcdefgh")
print(f"20 saves: {len(one)} file with one key, {len(eight)} files with eight keys")
assert all((load(data)["weight"] == tensors["weight"]).all() for data in eight)
assert len({len(data) for data in eight}) == 1
assert len(one) == 1, "with one key, files differ as well"
assert len(eight) > 1, "files with several keys are equal: the order has become stable"
PYTHON
