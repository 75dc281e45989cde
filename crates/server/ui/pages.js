// The pages about everything: overview, service levels, sessions, work, the cluster.

import { get } from '/ui/api.js';
import { card, h, ms, percent, state, table, when } from '/ui/dom.js';

function go(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  location.hash = given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

function select(label, value, options, onchange) {
  const id = `select-${label}`;
  const items = options.map(([name, text]) => h('option', { value: name, selected: name === value }, text));
  return h('label', { for: id }, label, h('select', { id, onchange: (event) => onchange(event.target.value) }, items));
}

export async function overview({ signal }) {
  const [status, levels, promised, listed, alerts] = await Promise.all([
    get('/v1/cluster', signal), get('/v1/sla?window=5m', signal), get('/v1/sla', signal), get('/v1/sessions?limit=20', signal), alertsOf(signal)]);
  const ended = levels.objectives.find((of) => of.indicator === 'session_completion');
  const throughput = ended && await get(`/v1/sla/history?${new URLSearchParams({ objective: ended.name, window: '30m' })}`, signal);
  const spent = promised.objectives.filter((of) => of.budget_left !== null).toSorted((a, b) => a.budget_left - b.budget_left)[0];
  const firing = alerts.filter((of) => of.state === 'firing');
  const shards = Object.values(status.shards);
  const leaderless = shards.filter((shard) => shard.leader === null).length;
  const problems = [
    leaderless > 0 && `${leaderless} of ${shards.length} shards have no leader`,
    status.writes_stopped && `writes are stopped: ${status.writes_stopped}`,
    status.refused && `this node is refused: ${status.refused}`,
    levels.nodes_missing.length > 0 && `nodes that do not answer: ${levels.nodes_missing.map(named(status)).join(', ')}`,
    ...Object.entries(status.broken).map(([shard, why]) => `shard ${shard} of this node has stopped: ${why}`),
    ...status.providers.filter((of) => of.circuit !== 'closed').map((of) => `provider ${of.name}: circuit ${of.circuit}`),
  ].filter(Boolean);
  const sum = (indicator, field) => levels.series.filter((of) => of.indicator === indicator)
    .reduce((total, of) => total + of[field], 0);
  const missed = levels.objectives.filter((of) => of.state === 'breached');
  const met = levels.objectives.filter((of) => of.state === 'met').length;
  return [
    h('h1', {}, 'Overview'),
    h('div', { class: 'cards' },
      card('Health', h('p', { class: `big ${problems.length ? 'bad' : 'good'}` }, problems.length ? '✗ look here' : '✓ all well'),
        problems.length ? h('ul', {}, problems.map((text) => h('li', {}, text))) : h('p', { class: 'quiet' }, `${status.nodes.length} nodes, ${shards.length} shards`)),
      card('Sessions ended, last 5 minutes', h('p', { class: 'big' }, String(sum('session_completion', 'n'))),
        h('p', { class: 'quiet' }, `${sum('session_completion', 'failed')} failed`), throughput ? rate(throughput) : null),
      card('Agent answers, last 5 minutes', h('p', { class: 'big' }, String(sum('agent_response', 'n'))),
        h('p', { class: 'quiet' }, `${sum('agent_response', 'failed')} attempts failed`)),
      card('Service levels, last 5 minutes', h('p', { class: `big ${missed.length ? 'bad' : 'good'}` }, missed.length ? `✗ ${missed.length} breached` : `✓ ${met} met`),
        h('p', { class: 'quiet' }, missed.length ? missed.map((of) => of.name).join(', ') : h('a', { href: '#/sla' }, 'All objectives'))),
      card('Error budget', ...(spent ? [h('p', { class: `big ${spent.budget_left < 0 ? 'bad' : 'good'}` }, `${percent(spent.budget_left)} left`),
        h('p', { class: 'quiet' }, `the least of all: ${spent.name}, ${spent.window}`)] : [h('p', { class: 'quiet' }, 'Nothing was measured yet.')])),
      card('Alerts', h('p', { class: `big ${firing.length ? 'bad' : 'good'}` }, firing.length ? `✗ ${firing.length} firing` : '✓ none'),
        firing.length ? h('ul', {}, firing.map((of) => h('li', {}, `${of.alert}: ${of.value}`))) : h('p', { class: 'quiet' }, `${alerts.length} rules`))),
    h('h2', {}, 'Newest sessions'),
    sessionTable(listed.sessions),
  ];
}

// How many ended, minute by minute.
function rate({ points }) {
  const most = Math.max(1, ...points.map((point) => point.n));
  const width = 400 / points.length;
  return h('svg', { viewBox: '0 0 400 40', role: 'img', 'aria-label': `by the minute, the last ${points.length}: ${most} at most` },
    h('rect', { class: 'track', x: 0, y: 39, width: 400, height: 1 }),
    points.map((point, place) => h('rect', { class: 'fill', x: place * width, y: 40 - 38 * point.n / most, width: Math.max(1, width - 1), height: 38 * point.n / most })));
}

// Alerts are all tenants' business: whoever may not see them sees none.
async function alertsOf(signal) {
  try {
    return (await get('/v1/alerts', signal)).alerts;
  } catch (error) {
    if (error.status === 403) return [];
    throw error;
  }
}

function sessionTable(list) {
  return table('Sessions', [
    { title: 'Session', cell: (of) => h('a', { href: `#/sessions/${of.id}` }, of.id) },
    { title: 'Workflow', cell: (of) => of.workflow },
    { title: 'State', cell: (of) => state(of.status) },
    { title: 'Begun', cell: (of) => when(of.created_at) },
    { title: 'Steps', number: true, cell: (of) => of.usage.steps },
    { title: 'Tokens', number: true, cell: (of) => of.usage.tokens_in + of.usage.tokens_out },
  ], list);
}

// Where the percentiles are, against the target: the bar ends at twice the target, or at the longest.
function bar(of) {
  const longest = Math.max(2 * of.target, of.p99 ?? 0, of.value ?? 0);
  const x = (value) => Math.min(400, 400 * value / longest);
  const mark = (value, name) => value === null ? null : h('g', {},
    h('line', { class: 'tick', x1: x(value), x2: x(value), y1: 4, y2: 20 }, h('title', {}, `${name} ${ms(value)}`)));
  const label = `P50 ${ms(of.p50)}, P95 ${ms(of.p95)}, P99 ${ms(of.p99)}, target ${ms(of.target)}`;
  return h('svg', { viewBox: '0 0 400 24', role: 'img', 'aria-label': label },
    h('rect', { class: 'track', x: 0, y: 8, width: 400, height: 8, rx: 4 }),
    h('rect', { class: `fill ${of.state === 'breached' ? 'failed' : 'done'}`, x: 0, y: 8, width: x(of.value ?? 0), height: 8, rx: 4 }),
    mark(of.p50, 'P50'), mark(of.p95, 'P95'), mark(of.p99, 'P99'),
    h('line', { class: 'target', x1: x(of.target), x2: x(of.target), y1: 0, y2: 24 }, h('title', {}, `target ${ms(of.target)}`)));
}

function budget(left) {
  if (left === null) return null;
  const width = Math.max(0, Math.min(1, left)) * 400;
  return [h('p', { class: 'quiet' }, `Error budget left: ${percent(left)}`),
    h('svg', { viewBox: '0 0 400 8', role: 'img', 'aria-label': `error budget left: ${percent(left)}` },
      h('rect', { class: 'track', x: 0, y: 0, width: 400, height: 8, rx: 4 }),
      h('rect', { class: `fill ${left < 0 ? 'failed' : 'done'}`, x: 0, y: 0, width, height: 8, rx: 4 }))];
}

const RANK = ['firing', 'pending', 'resolved', 'inactive'];

// What went past in an objective's window, slot by slot, and what was left of its error budget after each.
function history({ points, slot_seconds: seconds }) {
  const most = Math.max(1, ...points.map((point) => point.n));
  const width = 400 / points.length;
  const bars = points.map((point, place) => {
    const height = 60 * point.n / most;
    const late = point.n ? height * point.missed / point.n : 0;
    return h('g', {}, h('title', {}, `${new Date(point.at).toLocaleString()}: ${point.n}, ${point.missed} missed`),
      h('rect', { class: 'fill done', x: place * width, y: 60 - height, width: Math.max(1, width - 1), height: height - late }),
      h('rect', { class: 'fill failed', x: place * width, y: 60 - late, width: Math.max(1, width - 1), height: late }));
  });
  const left = points.map((point, place) => (point.budget_left === null ? null
    : `${(place + 0.5) * width},${58 - 56 * Math.max(0, Math.min(1, point.budget_left))}`)).filter(Boolean);
  const total = points.reduce((sum, point) => sum + point.n, 0);
  const missed = points.reduce((sum, point) => sum + point.missed, 0);
  return [h('svg', { viewBox: '0 0 400 60', role: 'img', 'aria-label': `${total} in ${points.length} slots of ${ms(1000 * seconds)}, ${missed} missed` },
    h('rect', { class: 'track', x: 0, y: 59, width: 400, height: 1 }), bars,
    left.length > 1 ? h('path', { class: 'line', d: `M${left.join(' L')}` }) : null),
  h('p', { class: 'quiet' }, left.length > 1 ? 'Bars: how many, and how many missed. Line: the error budget that was left.' : 'How many, and how many missed.')];
}

// How long they took: each bar is twice as long as the one before, the line is the target.
function histogram(buckets, of) {
  if (buckets.length === 0) return [];
  const most = Math.max(...buckets.map((bucket) => bucket.n));
  const width = 400 / buckets.length;
  const from = (place) => (place === 0 && buckets[0].up_to_ms <= 1 ? 0 : buckets[place].up_to_ms / 2);
  const bars = buckets.map((bucket, place) => h('g', {},
    h('title', {}, `${ms(from(place))} to ${ms(bucket.up_to_ms)}: ${bucket.n}`),
    h('rect', { class: `fill ${from(place) >= of.target ? 'failed' : 'done'}`, x: place * width, y: 60 - 58 * bucket.n / most, width: Math.max(1, width - 2), height: 58 * bucket.n / most })));
  const target = (Math.log2(of.target / buckets[0].up_to_ms) + 1) * width;
  const top = buckets.findIndex((bucket) => bucket.n === most);
  const label = `histogram of durations from ${ms(from(0))} to ${ms(buckets.at(-1).up_to_ms)}; most took ${ms(from(top))} to ${ms(buckets[top].up_to_ms)}`;
  return [h('svg', { viewBox: '0 0 400 60', role: 'img', 'aria-label': label },
    h('rect', { class: 'track', x: 0, y: 59, width: 400, height: 1 }), bars,
    target >= 0 && target <= 400 ? h('line', { class: 'target', x1: target, x2: target, y1: 0, y2: 60 }) : null),
  h('p', { class: 'quiet' }, `Durations from ${ms(from(0))} to ${ms(buckets.at(-1).up_to_ms)}, each bar up to twice as long as the one before. Line: the target.`)];
}

function historyOf(of, signal) {
  const place = h('div', {}, h('p', { class: 'quiet' }, 'Loading …'));
  const load = async (event) => {
    if (!event.target.open || place.dataset.loaded) return;
    place.dataset.loaded = 'yes';
    try {
      const parameters = new URLSearchParams({ objective: of.name, window: of.window });
      const found = await get(`/v1/sla/history?${parameters}`, signal);
      place.replaceChildren(...history(found), ...(of.unit === 'share' ? [] : histogram(found.histogram, of)));
    } catch (error) {
      place.replaceChildren(h('p', { class: 'bad' }, error.message));
    }
  };
  return h('details', { ontoggle: load }, h('summary', {}, 'History and histogram'), place);
}

function objective(of, signal) {
  const isShare = of.unit === 'share';
  const shown = isShare ? percent : ms;
  return h('section', { class: 'card' },
    h('div', { class: 'row' }, h('h2', {}, of.name), state(of.state)),
    h('p', { class: 'big' }, shown(of.value)),
    h('p', { class: 'quiet' }, `${of.statistic} ${of.comparator} ${shown(of.target)} over ${of.window}; n = ${of.n}${of.failed ? `, ${of.failed} failed` : ''}`),
    isShare ? null : [bar(of), h('p', { class: 'quiet' }, `P50 ${ms(of.p50)} · P95 ${ms(of.p95)} · P99 ${ms(of.p99)} · max ${ms(of.max)}`)],
    budget(of.budget_left),
    of.burn['1h'] === null ? null : h('p', { class: 'quiet' }, `Burn: ${['5m', '1h', '24h'].map((span) => `${span} ${of.burn[span]?.toFixed(2) ?? '–'}`).join(' · ')}`),
    of.exhausted_in_seconds === null ? null : h('p', { class: 'quiet' }, `At this rate spent in ${ms(1000 * of.exhausted_in_seconds)}`),
    of.worst_minute ? h('p', { class: 'quiet' }, `Worst minute of the last hour: ${shown(of.worst_minute.value)} of ${of.worst_minute.n}, `, when(of.worst_minute.at)) : null,
    historyOf(of, signal));
}

export async function sla({ query, signal }) {
  const window = query.get('window') ?? '';
  const [report, alerts] = await Promise.all([get(`/v1/sla${window ? `?window=${window}` : ''}`, signal), alertsOf(signal)]);
  const windows = [['', 'of each objective'], ['1m', '1 minute'], ['5m', '5 minutes'], ['1h', '1 hour'], ['24h', '24 hours'], ['30d', '30 days'], ['month', 'this month']];
  return [
    h('h1', {}, 'Service levels'),
    h('form', { onsubmit: (event) => event.preventDefault() }, select('Window', window, windows, (value) => go('/sla', { window: value }))),
    report.nodes_missing.length ? h('p', { class: 'bad' }, `${report.nodes_missing.length} nodes do not answer: what only they have measured is missing.`) : null,
    report.maintenance.length ? h('p', { class: 'quiet' }, `Maintenance, which uptime does not count: ${report.maintenance.map((of) => of.when + (of.now ? ' (now)' : '')).join('; ')}.`) : null,
    h('div', { class: 'cards' }, report.objectives.map((of) => objective(of, signal))),
    h('h2', {}, 'Alerts'),
    table('Alerts', [
      { title: 'Alert', cell: (of) => of.alert },
      { title: 'State', cell: (of) => state(of.state) },
      { title: 'Severity', cell: (of) => of.severity },
      { title: 'Value', cell: (of) => of.value },
      { title: 'Now', cell: (of) => of.now },
      { title: 'Since', cell: (of) => when(of.since) },
      { title: 'When', cell: (of) => of.when },
      { title: 'Action', cell: (of) => of.action || null },
    ], [...alerts].sort((a, b) => RANK.indexOf(a.state) - RANK.indexOf(b.state))),
    h('h2', {}, `What was measured, last ${report.series_window}`),
    table('Measurements', [
      { title: 'Indicator', cell: (of) => of.indicator },
      { title: 'Workflow', cell: (of) => of.workflow || null },
      { title: 'Role', cell: (of) => of.role || null },
      { title: 'Provider', cell: (of) => of.provider || null },
      { title: 'n', number: true, cell: (of) => of.n },
      { title: 'Failed', number: true, cell: (of) => of.failed },
      { title: 'P50', number: true, cell: (of) => ms(of.p50) },
      { title: 'P95', number: true, cell: (of) => ms(of.p95) },
      { title: 'P99', number: true, cell: (of) => ms(of.p99) },
      { title: 'Mean', number: true, cell: (of) => ms(of.mean) },
    ], report.series),
  ].filter(Boolean);
}

export async function sessions({ query, signal }) {
  const wanted = Object.fromEntries(['status', 'workflow', 'label'].map((name) => [name, query.get(name) ?? '']));
  const filter = Object.entries(wanted).filter(([, value]) => value);
  const cursor = query.get('cursor');
  const at = (more) => new URLSearchParams([...filter, ...more]);
  const page = await get(`/v1/sessions?${at([['limit', '50'], ...(cursor ? [['cursor', cursor]] : [])])}`, signal);
  const states = [['', 'any'], ...['running', 'waiting', 'completed', 'failed', 'canceled'].map((name) => [name, name])];
  const id = h('input', { id: 'session-id', placeholder: 'ses_…' });
  const open = (event) => {
    event.preventDefault();
    if (id.value.trim()) go(`/sessions/${encodeURIComponent(id.value.trim())}`, {});
  };
  const workflow = h('input', { id: 'session-workflow', value: wanted.workflow });
  const label = h('input', { id: 'session-label', placeholder: 'key=value', value: wanted.label });
  const search = (event) => {
    event.preventDefault();
    go('/sessions', { ...wanted, workflow: workflow.value.trim(), label: label.value.trim() });
  };
  return [
    h('h1', {}, 'Sessions'),
    h('form', { onsubmit: search },
      select('State', wanted.status, states, (value) => go('/sessions', { ...wanted, status: value })),
      h('label', { for: 'session-workflow' }, 'Workflow', workflow), h('label', { for: 'session-label' }, 'Label', label),
      h('button', {}, 'Search')),
    h('form', { onsubmit: open }, h('label', { for: 'session-id' }, 'Id', id), h('button', {}, 'Open')),
    sessionTable(page.sessions),
    h('p', { class: 'row' },
      cursor ? h('a', { href: `#/sessions?${at([])}` }, 'Newest') : null,
      page.next_cursor ? h('a', { href: `#/sessions?${at([['cursor', page.next_cursor]])}` }, 'Older') : null),
  ];
}

export async function work({ signal }) {
  const [{ queues }, { workers }] = await Promise.all([get('/v1/queues', signal), get('/v1/workers', signal)]);
  return [
    h('h1', {}, 'Queues and workers'),
    table('Queues', [
      { title: 'Queue', cell: (of) => of.queue },
      { title: 'Waiting', number: true, cell: (of) => of.waiting },
      { title: 'Running', number: true, cell: (of) => of.running },
      { title: 'Workers', number: true, cell: (of) => of.workers },
      { title: 'Slots', number: true, cell: (of) => of.slots },
    ], queues),
    h('h2', {}, 'Workers'),
    table('Workers', [
      { title: 'Worker', cell: (of) => of.name },
      { title: 'Queues', cell: (of) => of.queues.join(', ') },
      { title: 'Busy', number: true, cell: (of) => `${of.busy} of ${of.capacity}` },
      { title: 'Last heard', number: true, cell: (of) => `${ms(of.silent_ms)} ago` },
      { title: 'Node', cell: (of) => of.node },
    ], workers),
  ];
}

function named(status) {
  const names = new Map(status.nodes.map((node) => [node.id, node.name]));
  return (id) => names.get(id) ?? String(id ?? '–');
}

export async function cluster({ signal }) {
  const [status, replicas] = await Promise.all([get('/v1/cluster', signal), get('/v1/cluster/replicas', signal)]);
  const name = named(status);
  const shards = Object.entries(status.shards).map(([shard, of]) => ({ shard, ...of }));
  return [
    h('h1', {}, 'Cluster'),
    h('p', { class: 'quiet' }, `Release ${status.version}, feature level ${status.feature_level}, region ${status.region}. Seen by node ${name(status.node)}.`),
    table('Nodes', [
      { title: 'Node', cell: (of) => of.name },
      { title: 'Version', cell: (of) => of.version },
      { title: 'Knows level', number: true, cell: (of) => of.feature_level },
      { title: 'Leads', number: true, cell: (of) => shards.filter((shard) => shard.leader === of.id).length },
      { title: 'HTTP', cell: (of) => of.http },
      { title: 'gRPC', cell: (of) => of.grpc },
    ], status.nodes),
    h('h2', {}, 'Shards'),
    table('Shards', [
      { title: 'Shard', cell: (of) => of.shard },
      { title: 'Leader', cell: (of) => name(of.leader) },
      { title: 'Term', number: true, cell: (of) => of.term },
      { title: 'Voters', cell: (of) => of.voters.map(name).join(', ') },
      { title: 'Committed', number: true, cell: (of) => of.committed },
      { title: 'Position', number: true, cell: (of) => of.position },
    ], shards),
    h('h2', {}, 'Replicas'),
    replicas.nodes_missing.length ? h('p', { class: 'bad' }, `Nodes that do not answer: ${replicas.nodes_missing.map(name).join(', ')}`) : null,
    replicas.nodes_older.length ? h('p', { class: 'quiet' }, `Nodes of an older release, which do not tell: ${replicas.nodes_older.map(name).join(', ')}`) : null,
    table('Replicas', [
      { title: 'Shard', cell: ({ shard }) => shard.shard },
      { title: 'Node', cell: ({ of }) => name(of.node) },
      { title: 'Leads', cell: ({ of }) => of.leads ? 'leads' : '' },
      { title: 'Entries behind', number: true, cell: ({ of }) => of.behind },
      { title: 'Digest', cell: ({ of }) => of.digest && h('code', { title: of.digest }, of.digest.slice(0, 12)) },
      { title: 'Of position', number: true, cell: ({ shard }) => shard.compared?.position },
      { title: 'Last compared', cell: ({ shard, of }) => of.state && [state(of.state), ' ', when(shard.compared.at)] },
    ], replicas.shards.flatMap((shard) => shard.replicas.map((of) => ({ shard, of })))),
    h('h2', {}, 'Providers'),
    table('Providers', [
      { title: 'Provider', cell: (of) => of.name },
      { title: 'Circuit', cell: (of) => state(of.circuit) },
      { title: 'In flight', number: true, cell: (of) => of.in_flight },
      { title: '', cell: (of) => of.simulated ? 'simulated' : '' },
    ], status.providers),
  ].filter(Boolean);
}
