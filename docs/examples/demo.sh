#!/usr/bin/env bash
# The main job on a small project: the node is killed with SIGKILL in the middle of a session, and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$(realpath "${BINARY_UNDER_TEST:?set BINARY_UNDER_TEST to the orchestra binary}")
work=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
url=http://127.0.0.1:$port
node=
stop() { if [ -n "$node" ]; then kill -9 "$node" 2>/dev/null || true; fi; rm -rf "$work"; }
trap stop EXIT

# The simulated vendor takes its time, so that there is a middle.
cat >"$work/orchestra.toml" <<TOML
[log]
level = "warn"
[simulated.behaviour]
latency_min_ms = 200
latency_max_ms = 500
TOML

start_node() {
  "$bin" dev --config "$work/orchestra.toml" --data-dir "$work/data" --http 127.0.0.1:$port \
    --grpc 127.0.0.1:$((port + 1)) >>"$work/node.log" 2>&1 &
  node=$!
  for _ in $(seq 600); do
    curl -fs "$url/health/ready" >/dev/null 2>&1 && return
    kill -0 $node 2>/dev/null || break
    sleep 0.1
  done
  cat "$work/node.log"; echo "the node did not start" >&2; exit 1
}

echo '$ orchestra dev'
start_node
head -8 "$work/node.log"

echo; echo '$ orchestra start "Add a health endpoint" --workdir docs/examples/health-service --out OUT --wait'
"$bin" start "Add a health endpoint" --workdir docs/examples/health-service --out "$work/out" --wait --url "$url" \
  >"$work/start.log" 2>&1 &
client=$!
# In the middle: some steps are done, the session is not.
for _ in $(seq 600); do
  [ "$(grep -c ' done ' "$work/start.log")" -ge 4 ] && break
  kill -0 $client 2>/dev/null || break
  sleep 0.05
done
kill -0 $client 2>/dev/null || { cat "$work/start.log"; echo "the session ended before the kill" >&2; exit 1; }
done_before=$(grep -c ' done ' "$work/start.log")
kill -9 $node
wait $node 2>/dev/null || true
echo "--- kill -9 of the node after $done_before steps; the client waits; the node is started again"
start_node
wait $client || { cat "$work/start.log"; exit 1; }
cat "$work/start.log"

echo; echo '$ find OUT -type f'
(cd "$work/out" && find . -type f | sort)
[ -n "$(find "$work/out" -type f)" ] || { echo "no files were written" >&2; exit 1; }

id=$(sed -n 's/^session //p' "$work/start.log")
echo; echo '$ orchestra sessions events ID      (first and last)'
"$bin" sessions events "$id" --url "$url" >"$work/events"
sed -n '1,6p' "$work/events" | cut -c1-110; echo '  ...'; tail -3 "$work/events" | cut -c1-110
again=$(grep -c step_redispatched "$work/events" || true)
echo "work sent out again after the kill: $again steps"
[ "$again" -ge 1 ] || { echo "the kill interrupted nothing" >&2; exit 1; }

echo; echo '$ orchestra audit verify ID'
"$bin" audit verify "$id" --url "$url"
