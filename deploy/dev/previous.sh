#!/usr/bin/env bash
# Builds the release before this one from its commit, and prints where it is: upgrades are tested with it.
# `previous` in the metadata of Cargo.toml names the release and the commit.
set -euo pipefail
cd "$(dirname "$0")/../.."
field() { sed -n "/^\[workspace.metadata.previous\]/,/^\[/s/^$1 = \"\(.*\)\"$/\1/p" Cargo.toml; }
version=$(field version) commit=$(field commit)
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
program="$target/previous/orchestra-$version"
if [ ! -x "$program" ]; then
  if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
    echo "error: release $version is commit $commit, which is not in this clone: fetch the whole history" >&2
    exit 1
  fi
  echo "building release $version, with which upgrades are tested (once)" >&2
  source=$(mktemp -d)
  trap 'rm -rf "$source"' EXIT
  git archive "$commit" | tar -x -C "$source"
  # In the same target directory, as most dependencies are the same; this version's programs are put back by its next
  # build.
  CARGO_TARGET_DIR="$target" cargo build --quiet --locked --manifest-path "$source/Cargo.toml" -p cli --bin orchestra >&2
  rm -rf "$target/previous"
  mkdir -p "$target/previous"
  cp "$target/debug/orchestra" "$program.new"
  mv "$program.new" "$program"
fi
echo "$program"
