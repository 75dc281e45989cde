#!/usr/bin/env bash
# Runs the `sh` blocks of a page, in order and as one script, in an empty directory; stops at the first that fails.
# Needs `orchestra` in PATH.
set -euo pipefail
page=$(realpath "$1")
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
# What the blocks start ends with them, however they end.
echo "trap 'kill \$(jobs -p) 2> /dev/null || true' EXIT" > blocks.sh
awk '/^```sh$/ { inside = 1; next } /^```/ { inside = 0 } inside' "$page" >> blocks.sh
[ "$(wc -l < blocks.sh)" -gt 1 ] || { echo "error: $page has no \`\`\`sh blocks" >&2; exit 1; }
timeout 300 bash -euo pipefail blocks.sh
echo "$(basename "$page"): every block ran"
