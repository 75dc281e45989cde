#!/usr/bin/env bash
# Installs the peers that `make bench-peers` measures beside: etcd from Debian, Restate's server from npm, below the
# given directory. Prints where Restate's server is.
set -euo pipefail
version=1.7.12
into="$1/peers/restate-$version"
"$(dirname "$0")/setup.sh" peers >&2
server() { find "$into" -type f -path '*/bin/restate-server' -size +1M 2>/dev/null | head -n 1; }
if [ -z "$(server)" ]; then
  echo "installing Restate $version" >&2
  mkdir -p "$into"
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$into" "@restatedev/restate-server@$version" >&2
fi
server
