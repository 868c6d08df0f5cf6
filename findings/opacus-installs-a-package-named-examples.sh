#!/usr/bin/env bash
# opacus 1.6.0: its wheel installs a top-level package `examples` beside `opacus`, which hides a project's own folder
# `examples` that has no __init__.py, even where that folder comes first in `sys.path`.
#
# For Python a folder without __init__.py is a part of a namespace package, and any regular package of that name,
# however late in the path, goes before it. So `import examples.mine`, fine until then, fails from the day that
# Opacus is installed with "No module named 'examples.mine'", and nothing in the message names Opacus.
#
# Seen, and held here: the import works, then fails after the installation, and works again with an __init__.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
mkdir examples
echo 'print("examples.mine is imported")' >examples/mine.py

venv/bin/python -c 'import examples.mine'
venv/bin/pip install --quiet --disable-pip-version-check --no-deps "opacus==1.6.0"
venv/bin/pip show --files opacus | grep '^  examples/__init__.py'
! venv/bin/python -c 'import examples.mine' 2>said
tail -1 said
grep -q "No module named 'examples.mine'" said
touch examples/__init__.py
venv/bin/python -c 'import examples.mine'
