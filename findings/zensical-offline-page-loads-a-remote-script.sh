#!/usr/bin/env bash
# Zensical 0.0.73: a site built with the plugin `offline` still loads a script from another host, in every page.
#
# The plugin is for sites that are opened from a folder or behind a firewall. Search needs a worker, which a
# browser refuses to a `file:` page, so the generator adds a shim, by its address on the web. Without a network
# the page loads and search stays silent. A build with --strict says "No issues found". A script of one's own under
# `extra.polyfills` keeps the remote one out only if its file name contains `iframe-worker`; under any other name
# both are loaded.
#
# Seen, and held here: one remote script per page with `offline`; one still with a polyfill of another name; none
# with a polyfill that has that name.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "zensical==0.0.73"

build() { # [polyfill]
    rm -rf site .cache docs && mkdir -p docs/assets
    printf '# Page\n\nSome words.\n' >docs/index.md
    printf 'site_name: trial\ntheme:\n  font: false\nplugins:\n  - search\n  - offline\n' >mkdocs.yml
    if [ $# -gt 0 ]; then
        printf '/* nothing */\n' >"docs/assets/$1"
        printf 'extra:\n  polyfills:\n    - assets/%s\n' "$1" >>mkdocs.yml
    fi
    venv/bin/zensical build --clean --strict >build.log 2>&1 || { cat build.log; exit 1; }
    { grep -oE '<script[^>]* src="https?://' site/index.html || true; } | wc -l
}

venv/bin/zensical --version
plain=$(build)
other=$(build shim.js)
named=$(build iframe-worker.js)
echo "remote scripts in the page: $plain without a polyfill, $other with shim.js, $named with iframe-worker.js"
[ "$plain" -eq 1 ] && [ "$other" -eq 1 ] && [ "$named" -eq 0 ]
