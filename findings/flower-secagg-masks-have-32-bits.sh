#!/usr/bin/env bash
# flwr 1.41.0: the masks of SecAgg and SecAgg+ come from 32 bits, and never have the largest value.
#
# Two clients agree on a key of 32 bytes. `pseudo_rand_gen` folds it to 32 bits by exclusive or, and seeds NumPy's
# Mersenne Twister with them, so that whoever knows a few masked numbers can try all 4,294,967,296 masks.
# `randint(0, num_range - 1)` excludes its upper bound: below a modulus m, masks are from 0 to m - 2, and a masked
# number is not quite uniform.
#
# Seen, and held here: two keys whose words are in another order have equal masks; of 100,000 masks below 4, none
# is 3.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "flwr==1.41.0"

cat >masks.py <<'PY'
import numpy as np
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

key = bytes(range(32))
other = key[4:8] + key[:4] + key[8:]
first, second = (pseudo_rand_gen(one, 1 << 32, [(4,)])[0] for one in (key, other))
print(f"masks of two keys: {first} and {second}, where different ones are right")
counts = np.bincount(pseudo_rand_gen(key, 4, [(100_000,)])[0], minlength=4)
print(f"masks below 4, by value: {counts}, where about 25,000 each are right")
assert key != other and (first == second).all() and counts[3] == 0
PY
venv/bin/python masks.py
