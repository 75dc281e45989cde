// Three nodes and a slow vendor: the dashboard of every node shows the breach that the event logs show, with the same
// counts, and percentiles within 0.1 %; then that the replicas are equal, and which vendor another one stood in for.
// BINARY=path/to/orchestra CHROMIUM=path/to/chromium node breach.js
//
// On the ports of `orchestra dev --nodes 3`.

import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PATIENCE_MS, caller, chrome, orchestra, until } from './tools.js';

const SESSIONS = 30;
const TARGET_MS = 60;
const WORKFLOW = `
name: measured
steps:
  - {id: write, agent: {role: executor, prompt: 'write {{ input }}'}}
  - {id: audit, agent: {role: auditor, prompt: 'audit {{ input }}'}}
`;
const FALLING_BACK = `
name: falling-back
steps:
  - {id: ask, agent: {role: consultant, prompt: 'ask'}}
`;
const OBJECTIVES = `
[[objectives]]
name = "audit"
indicator = "agent_response"
role = "auditor"
statistic = "p95"
target = "${TARGET_MS}ms"
`;
const ALERTS = `
[[alerts]]
name = "slow audits"
when = "agent_response{role=auditor}.p95 > ${TARGET_MS}ms over 5m for 1s"
severity = "warning"
`;

// A vendor that speaks the streaming format of OpenAI, and takes its time: by the number of the call.
async function vendor(latencyMs, status = 200) {
  let calls = 0;
  const server = createServer((request, response) => {
    const latency = latencyMs(calls);
    calls += 1;
    request.resume().on('end', () => setTimeout(() => {
      response.writeHead(status, { 'content-type': 'text/event-stream' });
      for (const data of [{ choices: [{ index: 0, delta: { content: 'done' } }] },
        { choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] },
        { choices: [], usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 } }]) {
        response.write(`data: ${JSON.stringify(data)}\n\n`);
      }
      response.end('data: [DONE]\n\n');
    }, latency));
  });
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  return { url: `http://127.0.0.1:${server.address().port}/v1/`, close: () => server.close() };
}

// Milliseconds of a time with microseconds.
function time(text) {
  const [whole, fraction] = text.replace('Z', '').split('.');
  return Date.parse(`${whole}Z`) + Number(`0.${fraction ?? 0}`) * 1000;
}

const directory = await mkdtemp(join(tmpdir(), 'orchestra-ui-'));
const [quick, slow] = [await vendor((call) => call % 5), await vendor((call) => (call % 3 ? 80 + call : 20))];
const down = await vendor(() => 0, 503);
const provider = (name, { url }) => `[providers.${name}]\nwire = "openai"\nbase_url = "${url}"\n`;
const file = async (name, text) => {
  const path = join(directory, name);
  await writeFile(path, text);
  return path;
};
const config = await file('orchestra.toml', `
${provider('quick', quick)}${provider('slow', slow)}${provider('down', down)}
[roles]
default = ["quick/m"]
auditor = ["slow/m"]
consultant = ["down/m", "quick/m"]
[sla]
objectives = "${await file('objectives.toml', OBJECTIVES)}"
[alerts]
rules = "${await file('alerts.toml', ALERTS)}"
every_seconds = 1
`);
const cluster = orchestra(['dev', '--nodes', '3', '--config', config, '--data-dir', join(directory, 'data')]);

let browser;
try {
  await until('the cluster', () => cluster.says('orchestra dev is ready'));
  const { nodes } = await caller('http://127.0.0.1:7100')('GET', '/v1/cluster');
  const bases = nodes.map(({ http }) => `http://${http}`);
  assert.equal(bases.length, 3, JSON.stringify(nodes));
  const calls = bases.map(caller);
  await calls[0]('POST', '/v1/workflows', WORKFLOW);
  const sessions = [];
  for (let number = 0; number < SESSIONS; number += 1) {
    const body = { workflow: 'measured', input: number };
    sessions.push(await calls[number % 3]('POST', '/v1/sessions', body, { 'content-type': 'application/json' }));
  }
  const audits = [];
  for (const { id } of sessions) {
    await until('a session to end', async () => (await calls[0]('GET', `/v1/sessions/${id}`)).status === 'completed');
    const { events } = await calls[1]('GET', `/v1/sessions/${id}/events`);
    const audit = events.find(({ type, data }) => type === 'step_completed' && data.report?.provider === 'slow');
    audits.push(time(audit.at) - time(audit.data.started_at));
  }
  audits.sort((a, b) => a - b);
  const percentile = (percent) => audits[Math.ceil(audits.length * percent / 100) - 1];
  assert.ok(percentile(95) > TARGET_MS, `the vendor is slow: ${percentile(95)} ms`);

  browser = await chrome();
  for (const base of bases) {
    const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
    const firing = page.getByRole('region', { name: 'Alerts' }).getByRole('row', { name: 'slow audits' }).getByText('✗ firing');
    await until('the alert to fire', async () => {
      await page.goto(`${base}/#/sla`);
      await page.reload();
      await page.getByRole('heading', { level: 1, name: 'Service levels' }).waitFor({ timeout: PATIENCE_MS });
      return firing.isVisible();
    });
    const audit = page.locator('section', { has: page.getByRole('heading', { name: 'audit', exact: true }) });
    await audit.getByText('✗ breached').waitFor();
    const shown = await audit.innerText();
    assert.match(shown, new RegExp(`n = ${SESSIONS}(?!\\d)`), shown);
    for (const percent of [50, 95, 99]) {
      const [, number, unit] = shown.match(new RegExp(`P${percent} ([0-9.]+) (ms|s)`));
      const [said, expected] = [Number(number) * (unit === 's' ? 1000 : 1), percentile(percent)];
      // Half of the last digit shown, besides.
      assert.ok(Math.abs(said - expected) <= expected / 1000 + 0.05, `P${percent}: ${said}, of the events ${expected}`);
    }
    await page.goto(`${base}/#/`);
    // How fast the budget is spent may fire as well.
    await page.getByText(/^✗ \d+ firing$/).waitFor();
    await page.getByText(/^slow audits: /).waitFor();
    await page.getByText('✗ 1 breached').waitFor();
    await page.close();
  }
  // Every replica of every shard, and what came of it when they were last compared.
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  await page.goto(`${bases[1]}/#/cluster`);
  const replicas = page.getByRole('region', { name: 'Replicas' }).getByRole('row');
  await until('all replicas to be compared', async () => await replicas.getByText('✓ equal').count() === 12);
  const { shards } = await calls[2]('POST', '/v1/cluster/verify', {}, { 'content-type': 'application/json' });
  assert.ok(shards.every(({ state, digests }) => state === 'equal' && Object.keys(digests).length === 3), JSON.stringify(shards));
  const { shards: told } = await calls[0]('GET', '/v1/cluster/replicas');
  for (const [place, { compared, replicas: list }] of told.entries()) {
    // They are compared by themselves as well, every few seconds.
    assert.ok(compared.position >= shards[place].position, JSON.stringify(told));
    assert.equal(new Set(list.map(({ digest }) => digest)).size, 1, JSON.stringify(told));
  }
  await calls[0]('POST', '/v1/workflows', FALLING_BACK);
  const fell = await calls[0]('POST', '/v1/sessions', { workflow: 'falling-back', input: null }, { 'content-type': 'application/json' });
  await page.goto(`${bases[2]}/#/sessions/${fell.id}`);
  await page.getByText('✓ completed').first().waitFor();
  await page.getByRole('region', { name: 'Steps' }).getByText('down: unavailable').waitFor();
  await page.getByRole('region', { name: 'Events' }).getByText('quick instead of down: unavailable').waitFor();
  process.stdout.write(`the dashboard of three nodes: the breach that ${SESSIONS} event logs show, their replicas, and a fallback\n`);
} catch (error) {
  process.stderr.write(`${error.stack ?? error}\n--- the nodes said:\n${cluster.lastLines()}\n`);
  process.exitCode = 1;
} finally {
  await browser?.close();
  await cluster.kill();
  quick.close();
  slow.close();
  down.close();
  await rm(directory, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
}
