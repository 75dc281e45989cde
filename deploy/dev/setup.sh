#!/usr/bin/env bash
# Installs what the build needs and is missing; with `testing`, what tests need besides; with `browser`, what
# clicking through the dashboard needs; with `peers`, what is measured beside; with `cargo-deny`, what `make lint` needs. Does nothing where all is there.
set -euo pipefail

if [ "${1:-}" = cargo-deny ]; then
  command -v cargo-deny >/dev/null && exit 0
  echo "installing cargo-deny (about 3 minutes, once)"
  exec cargo install --quiet --locked --version 0.20.2 --target-dir "${TMPDIR:-/tmp}/cargo-deny-build" cargo-deny
fi

missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v ccache >/dev/null || missing+=(ccache)
command -v curl >/dev/null || missing+=(curl)
# By the names under which bindgen looks: `libclang-cpp.so`, which LLVM's other packages bring, is another library.
compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null \
  || compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null \
  || compgen -G '/usr/lib/*/libclang.so*' >/dev/null \
  || compgen -G '/usr/lib/*/libclang-[0-9]*.so*' >/dev/null \
  || [ -n "${LIBCLANG_PATH:-}" ] || missing+=(libclang-dev)
if [ "${1:-}" = testing ]; then
  # Nodes with a wrong clock.
  compgen -G '/usr/lib*/*/faketime/libfaketimeMT.so*' >/dev/null \
    || compgen -G '/usr/lib*/faketime/libfaketimeMT.so*' >/dev/null || missing+=(libfaketime)
  # Scrapes a node, and tests the exported rules.
  command -v promtool >/dev/null && command -v prometheus >/dev/null || missing+=(prometheus)
  # Runs the worker of docs/examples/python.
  /usr/bin/python3 -c 'import grpc, google.protobuf' 2>/dev/null || missing+=(python3-grpcio)
  command -v protoc >/dev/null || missing+=(protobuf-compiler)
  command -v grpc_python_plugin >/dev/null || missing+=(protobuf-compiler-grpc)
fi
if [ "${1:-}" = browser ]; then
  [ -x "${CHROMIUM:-/usr/bin/chromium}" ] || missing+=(chromium)
  command -v npm >/dev/null || missing+=(nodejs npm)
fi
if [ "${1:-}" = peers ]; then
  command -v etcd >/dev/null || missing+=(etcd-server)
  command -v npm >/dev/null || missing+=(nodejs npm)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "error: install ${missing[*]} with this system's package manager, then repeat" >&2
  exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
