// One session: what it is doing and why it is not, its steps on a line of time, its events as they happen, and what a
// person can do about it.

import { follow, get, post } from '/ui/api.js';
import { h, ms, redraw, state, table, usd, when, whenReleased } from '/ui/dom.js';

const ENDED = ['completed', 'failed', 'canceled'];

function json(value) {
  return JSON.stringify(value, null, 2);
}

function actions(id, session, coming, refresh) {
  const path = `/v1/sessions/${encodeURIComponent(id)}`;
  const said = h('p', { class: 'bad', role: 'alert' });
  const act = (what, body) => async (event) => {
    event.preventDefault();
    said.textContent = '';
    try {
      await post(`${path}/${what}`, typeof body === 'function' ? body() : body);
      await refresh();
    } catch (error) {
      said.textContent = error.message;
    }
  };
  const list = [];
  if (coming.some((step) => step.waits_for.startsWith('an approval'))) {
    list.push(h('button', { onclick: act('approve', { decision: 'approve' }) }, 'Approve'),
      h('button', { onclick: act('approve', { decision: 'reject', reason: 'rejected on the dashboard' }) }, 'Reject'));
  }
  if (session.status === 'failed') list.push(h('button', { onclick: act('retry', {}) }, 'Retry'));
  if (!ENDED.includes(session.status)) {
    list.push(h('button', { onclick: act('cancel', { reason: 'canceled on the dashboard' }) }, 'Cancel'));
  }
  const elements = [h('div', { class: 'row' }, list), said];
  if (!ENDED.includes(session.status)) {
    const awaited = coming.map((step) => /signal `(.+)`/.exec(step.waits_for)?.[1]).find(Boolean);
    const name = h('input', { id: 'signal-name', required: true, value: awaited });
    const payload = h('input', { id: 'signal-payload', value: 'null' });
    elements.push(h('form', { onsubmit: act('signal', () => ({ name: name.value, payload: JSON.parse(payload.value) })) },
      h('label', { for: 'signal-name' }, 'Signal', name), h('label', { for: 'signal-payload' }, 'Payload (JSON)', payload),
      h('button', {}, 'Send signal')));
  }
  return elements;
}

// A line a step: grey from when it could begin, coloured from when it did, with a mark where an attempt failed.
function gantt(session, failures) {
  const steps = session.steps.filter((step) => step.started_at || step.ready_at).slice(0, 200);
  if (steps.length === 0) return h('p', { class: 'quiet' }, 'No steps yet.');
  // What was taken over from another session is older than this one.
  const begin = Math.min(Date.parse(session.created_at), ...steps.map((step) => Date.parse(step.ready_at ?? step.started_at)));
  const now = session.ended_at ? Date.parse(session.ended_at) : Date.now();
  const ends = steps.map((step) => Date.parse(step.ended_at ?? 0) || now);
  const span = Math.max(1, Math.max(now, ...ends) - begin);
  const x = (time) => 160 + 620 * Math.min(1, Math.max(0, (time - begin) / span));
  const rows = steps.map((step, place) => {
    const from = Date.parse(step.ready_at ?? step.started_at);
    const started = step.started_at ? Date.parse(step.started_at) : null;
    const end = ends[place];
    const kind = { completed: 'done', failed: 'failed', waiting: 'waiting', backoff: 'waiting' }[step.status] ?? '';
    const label = step.id.length > 24 ? `${step.id.slice(0, 23)}…` : step.id;
    const failed = failures.filter((failure) => failure.step === step.id).map((failure) => h('g', {},
      h('title', {}, `${step.id}: an attempt failed: ${failure.error.code}`),
      h('line', { class: 'target', x1: x(failure.at), x2: x(failure.at), y1: 3 + 20 * place, y2: 21 + 20 * place })));
    return h('g', {}, h('title', {}, `${step.id}: ${step.status}, ${ms(end - (started ?? from))}, attempt ${step.attempt}`),
      h('text', { x: 0, y: 16 + 20 * place }, label),
      h('rect', { class: 'idle', x: x(from), y: 6 + 20 * place, width: Math.max(1, x(started ?? end) - x(from)), height: 12 }),
      started === null ? null : h('rect', { class: `fill ${kind}`, x: x(started), y: 6 + 20 * place, width: Math.max(2, x(end) - x(started)), height: 12, rx: 2 }),
      failed);
  });
  const text = `${steps.length} steps over ${ms(span)}, ${failures.length} attempts failed; the table below has their times`;
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Timeline' },
    h('svg', { viewBox: `0 0 800 ${20 * steps.length + 8}`, role: 'img', 'aria-label': text, class: 'wide' }, rows));
}

// What comes after what: a column further right for each step that has to end before, or that a step is inside of.
function graph(session) {
  const steps = session.steps.slice(0, 200);
  if (steps.length < 2) return [];
  const byId = new Map(steps.map((step) => [step.id, step]));
  const inside = new Map();
  for (const step of steps) if (byId.has(step.inside)) inside.set(step.inside, [...(inside.get(step.inside) ?? []), step]);
  const columns = new Map();
  const column = (step) => {
    if (!columns.has(step.id)) {
      columns.set(step.id, 0); // A mistake in the answer must not hang the page.
      const before = step.after.map((id) => byId.get(id)).filter(Boolean).map((of) => end(of) + 1);
      const within = byId.has(step.inside) ? [column(byId.get(step.inside)) + 1] : [];
      columns.set(step.id, Math.max(0, ...before, ...within));
    }
    return columns.get(step.id);
  };
  const end = (step) => Math.max(column(step), ...(inside.get(step.id) ?? []).map(end));
  const rows = new Map();
  const used = [];
  const place = (step) => {
    const at = column(step);
    const row = Math.max(used[at] ?? 0, rows.get(step.inside) ?? 0);
    used[at] = row + 1;
    rows.set(step.id, row);
  };
  steps.toSorted((a, b) => column(a) - column(b)).forEach(place);
  const x = (step) => 8 + 180 * column(step);
  const y = (step) => 8 + 36 * rows.get(step.id);
  const edge = (from, to, kind) => h('path', { class: kind, d: `M${x(from) + 150},${y(from) + 12} C${x(from) + 170},${y(from) + 12} ${x(to) - 20},${y(to) + 12} ${x(to)},${y(to) + 12}` });
  const edges = steps.flatMap((step) => [
    ...step.after.map((id) => byId.get(id)).filter(Boolean).map((from) => edge(from, step, 'edge')),
    ...(byId.has(step.inside) ? [edge(byId.get(step.inside), step, 'edge within')] : []),
  ]);
  const boxes = steps.map((step) => {
    const kind = { completed: 'done', failed: 'failed', waiting: 'waiting', backoff: 'waiting' }[step.status] ?? '';
    const name = step.id.split('/').at(-1);
    return h('g', {}, h('title', {}, `${step.id}: ${step.kind}, ${step.status}`),
      h('rect', { class: `box ${kind}`, x: x(step), y: y(step), width: 150, height: 24, rx: 4 }),
      h('text', { x: x(step) + 8, y: y(step) + 16 }, name.length > 19 ? `${name.slice(0, 18)}…` : name));
  });
  const [wide, high] = [Math.max(...columns.values()) + 1, Math.max(...rows.values()) + 1].map((of, axis) => 8 + of * [180, 36][axis]);
  const text = `${steps.length} steps in ${Math.max(...columns.values()) + 1} columns; the table below has what each waits for`;
  return [h('h2', {}, 'Graph'), h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Graph' },
    h('svg', { class: 'natural', viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: 'img', 'aria-label': text }, edges, boxes))];
}

// The vendors that were asked before the one that answered, or gave up last, and why each was not enough.
function fallbacks(report) {
  const calls = report?.calls ?? [];
  return calls.slice(0, -1).filter((call) => call.error).map((call) => `${call.provider}: ${call.error.code}`);
}

function stepTable(session, fellBack) {
  return table('Steps', [
    { title: 'Step', cell: (step) => step.id },
    { title: 'Kind', cell: (step) => step.kind },
    { title: 'After', cell: (step) => step.after.join(', ') || null },
    { title: 'State', cell: (step) => state(step.status) },
    { title: 'Attempt', number: true, cell: (step) => step.attempt },
    { title: 'Took', number: true, cell: (step) => step.started_at && step.ended_at ? ms(Date.parse(step.ended_at) - Date.parse(step.started_at)) : null },
    { title: 'Provider', cell: (step) => step.provider || null },
    { title: 'Instead of', text: true, cell: (step) => fellBack.get(step.id)?.join(', ') || null },
    { title: 'Tokens', number: true, cell: (step) => step.usage ? step.usage.tokens_in + step.usage.tokens_out : null },
    { title: 'Cost', number: true, cell: (step) => usd(step.cost_microusd) },
    { title: 'Error', text: true, cell: (step) => step.error ? `${step.error.code}: ${step.error.message}` : null },
  ], session.steps);
}

function files(session) {
  const list = session.output?.files ?? session.output;
  const found = Array.isArray(list) ? list.filter((file) => file && typeof file.path === 'string' && typeof file.content === 'string') : [];
  if (found.length === 0) return [];
  return [h('h2', {}, 'Files'), ...found.map((file) => h('details', {}, h('summary', {}, file.path), h('pre', { tabindex: '0' }, file.content)))];
}

function eventRow(id, event, said) {
  const data = event.data ?? {};
  const before = fallbacks(data.report);
  const what = [data.error ? `${data.error.code}: ${data.error.message}` : data.report?.provider ?? data.name ?? data.reason ?? '',
    ...(before.length ? [`instead of ${before.join(', ')}`] : [])].join(' ');
  return h('tr', {}, h('td', { class: 'number' }, String(event.seq)), h('td', {}, when(event.at)), h('td', {}, event.type.replaceAll('_', ' ')),
    h('td', {}, event.step ?? '–'), h('td', { class: 'text' }, String(what)),
    h('td', {}, h('button', { 'aria-label': `Fork after event ${event.seq}`, onclick: () => fork(id, event.seq, said) }, 'Fork')));
}

// Another session that goes on from here, and is shown next.
async function fork(id, at, said) {
  said.textContent = '';
  try {
    const made = await post(`/v1/sessions/${encodeURIComponent(id)}/fork`, { at });
    location.hash = `/sessions/${made.id}`;
  } catch (error) {
    said.textContent = error.message;
  }
}

async function followEvents(id, { body, said, failures, fellBack }, signal, changed) {
  try {
    let waiting = false;
    for await (const event of follow(id, 0, signal)) {
      body.prepend(eventRow(id, event, said));
      if (event.step && event.data?.error) failures.push({ step: event.step, at: Date.parse(event.at), error: event.data.error });
      // As the table has it: of the last attempt.
      if (event.data?.report) fellBack.set(event.step, fallbacks(event.data.report));
      if (waiting) continue;
      waiting = true;
      // Several events often come together.
      setTimeout(() => { waiting = false; changed(); }, 250);
    }
  } catch (error) {
    if (!signal.aborted) body.prepend(h('tr', {}, h('td', { colspan: 6 }, `The stream of events ended: ${error.message}`)));
  }
}

export async function session({ argument, signal }) {
  const id = decodeURIComponent(argument);
  const path = `/v1/sessions/${encodeURIComponent(id)}`;
  const above = h('div');
  const body = h('tbody');
  const said = h('p', { class: 'bad', role: 'alert' });
  const failures = [];
  const fellBack = new Map();
  // Whoever types is not disturbed.
  const isTyping = () => above.contains(document.activeElement) && document.activeElement.tagName === 'INPUT';
  let [asked, drawn] = [0, 0];
  const draw = async ({ isWished = true } = {}) => {
    asked += 1;
    const mine = asked;
    const [of, described] = await Promise.all([get(path, signal), get(`${path}/describe`, signal)]);
    await whenReleased();
    // An answer that a later one has overtaken is old; and who began to type meanwhile is not disturbed.
    if (mine < drawn || (!isWished && isTyping())) return;
    drawn = mine;
    const { usage } = of;
    redraw(above,
      h('p', {}, state(of.status), ` · ${of.workflow} · begun `, when(of.created_at), of.ended_at ? [' · ended ', when(of.ended_at)] : ''),
      Object.keys(of.labels).length ? h('p', { class: 'quiet' }, Object.entries(of.labels).map(([key, value]) => `${key}=${value}`).join(' · ')) : '',
      h('p', { class: 'quiet' }, `${usage.steps} steps, ${usage.tokens_in} tokens in, ${usage.tokens_out} out, ${usd(usage.cost_microusd)}; ${of.events} events`),
      of.error ? h('p', { class: 'bad' }, `${of.error.code}: ${of.error.message}`) : '',
      ...actions(id, of, described.coming, draw),
      ...(ENDED.includes(of.status) ? [] : [h('h2', {}, 'Why is it not moving?'), table('Steps on their way', [
        { title: 'Step', cell: (step) => step.step },
        { title: 'State', cell: (step) => state(step.status) },
        { title: 'Waits for', text: true, cell: (step) => step.waits_for },
        { title: 'Attempt', number: true, cell: (step) => step.attempt },
        { title: 'Last error', text: true, cell: (step) => step.last_error ? `${step.last_error.code}: ${step.last_error.message}` : null },
      ], described.coming)]),
      ...graph(of), h('h2', {}, 'Timeline'), gantt(of, failures), h('h2', {}, 'Steps'), stepTable(of, fellBack), ...files(of),
      h('details', {}, h('summary', {}, 'Input and output'), h('pre', { tabindex: '0' }, json({ input: of.input, output: of.output }))));
  };
  await draw();
  followEvents(id, { body, said, failures, fellBack }, signal, () => { if (!isTyping()) draw({ isWished: false }).catch(() => {}); });
  return [h('h1', {}, id), above, h('h2', {}, 'Events, newest first'), said,
    h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Events' },
      h('table', {}, h('thead', {}, h('tr', {}, ['No.', 'At', 'What', 'Step', 'Details', 'Go on from here'].map((title) => h('th', { scope: 'col' }, title)))), body))];
}
session.live = true;
