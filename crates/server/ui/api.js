// Calls of the API of the node that served this page.

let token = sessionStorage.getItem('orchestra-token') ?? '';

function headers(more = {}) {
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function checked(response) {
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const error = new Error(problem.detail ?? problem.title ?? `the node answered ${response.status}`);
  error.status = response.status;
  throw error;
}

export function setToken(value) {
  token = value;
  sessionStorage.setItem('orchestra-token', value);
}

export async function get(path, signal) {
  return (await checked(await fetch(path, { headers: headers(), signal }))).json();
}

export async function post(path, body) {
  const init = { method: 'POST', headers: headers({ 'content-type': 'application/json' }), body: JSON.stringify(body) };
  return (await checked(await fetch(path, init))).json();
}

// The data of server-sent events, until the stream ends.
async function* messages(path, signal) {
  const response = await checked(await fetch(path, { headers: headers({ accept: 'text/event-stream' }), signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split('\n').find((line) => line.startsWith('data:'));
      if (data) yield data.slice(5);
    }
  }
}

// Calls `changed` whenever the node has applied something. Ends with the stream.
export async function whenChanged(changed) {
  for await (const _ of messages('/v1/changes')) changed();
}

// The events of a session, as they happen, from a number on. Ends with the session, or when `signal` does.
export async function* follow(id, from, signal) {
  let next = from;
  while (!signal.aborted) {
    const path = `/v1/sessions/${encodeURIComponent(id)}/events?from=${next}`;
    for await (const data of messages(path, signal)) {
      const event = JSON.parse(data);
      next = event.seq + 1;
      yield event;
      if (['session_completed', 'session_failed', 'session_canceled'].includes(event.type)) return;
    }
    // The node closed the stream: it stops, or the connection broke.
    await new Promise((resolve) => { setTimeout(resolve, 1000); });
  }
}
