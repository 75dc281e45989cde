// Clicks through the dashboard in headless Chromium: BINARY=path/to/orchestra CHROMIUM=path/to/chromium node test.js
//
// Fails on: horizontal scrolling at 390 and 1280 pixels, a serious finding of axe-core in light or dark, an error in the
// console, a request to anywhere but the node, or a page that does not show what it must.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PATIENCE_MS, caller, chrome, freePort, orchestra, until } from './tools.js';

const axeSource = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

const WORKFLOW = `
name: shown
steps:
  - {id: draft, agent: {role: architect, prompt: 'draft {{ input.topic }}'}}
  - {id: release, wait: {approval: draft}}
  - {id: news, wait: {signal: go}}
  - {id: result, value: "[{'path': 'a/b.txt', 'content': 'the result'}]"}
`;
const FAILING = `
name: failing
steps:
  - {id: bad, value: 'input.nothing.here'}
`;

const directory = await mkdtemp(join(tmpdir(), 'orchestra-ui-'));
const [http, grpc, peer] = [await freePort(), await freePort(), await freePort()];
const base = `http://127.0.0.1:${http}`;
const node = orchestra(['dev', '--data-dir', join(directory, 'data'), '--http', `127.0.0.1:${http}`,
  '--grpc', `127.0.0.1:${grpc}`, '--peer', `127.0.0.1:${peer}`]);
const call = caller(base);

const start = (workflow, key) => call('POST', '/v1/sessions', { workflow, input: { topic: '<b>bold</b>' }, labels: { number: key } },
  { 'idempotency-key': key, 'content-type': 'application/json' });

let browser;
try {
  await until('the node', () => fetch(`${base}/health/ready`).then((answer) => answer.ok, () => false));
  await call('POST', '/v1/workflows', WORKFLOW);
  await call('POST', '/v1/workflows', FAILING);
  const approved = await start('shown', 'one');
  const canceled = await start('shown', 'two');
  const failed = await start('failing', 'three');
  const atApproval = async (id) => (await call('GET', `/v1/sessions/${id}/describe`)).coming.some((step) => step.waits_for.startsWith('an approval'));
  for (const { id } of [approved, canceled]) await until('an approval to be due', () => atApproval(id));
  await until('the failure', async () => (await call('GET', `/v1/sessions/${failed.id}`)).status === 'failed');

  browser = await chrome();
  const problems = [];
  const open = async (width, colorScheme) => {
    const page = await browser.newPage({ viewport: { width, height: 800 }, colorScheme });
    page.on('console', (message) => { if (message.type() === 'error') problems.push(`console: ${message.text()}`); });
    page.on('pageerror', (error) => problems.push(`page: ${error.message}`));
    page.on('request', (request) => {
      const url = request.url();
      if (!url.startsWith(base) && !url.startsWith('data:')) problems.push(`a request to ${url}`);
    });
    return page;
  };
  const visit = async (page, path, heading) => {
    await page.goto(`${base}/#${path}`);
    await page.getByRole('heading', { level: 1, name: heading }).waitFor({ timeout: PATIENCE_MS });
  };
  const sound = async (page, where) => {
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    if (overflow > 0) problems.push(`${where}: ${overflow} pixels too wide`);
    await page.evaluate(axeSource);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    for (const violation of violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))) {
      problems.push(`${where}: ${violation.id}: ${violation.nodes.map(({ html }) => html).slice(0, 3).join(' | ')}`);
    }
    if (process.env.SCREENSHOTS) {
      await page.screenshot({ path: join(process.env.SCREENSHOTS, `${where.replaceAll(/[^a-z0-9]+/gi, '-')}.png`), fullPage: true });
    }
  };
  const pages = [['/', 'Overview'], ['/sla', 'Service levels'], ['/sessions', 'Sessions'], [`/sessions/${approved.id}`, approved.id],
    ['/work', 'Queues and workers'], ['/cluster', 'Cluster']];
  for (const width of [390, 1280]) {
    for (const colorScheme of ['light', 'dark']) {
      const page = await open(width, colorScheme);
      for (const [path, heading] of pages) {
        await visit(page, path, heading);
        await sound(page, `${heading.startsWith('ses_') ? 'Session' : heading} ${width} ${colorScheme}`);
      }
      await page.close();
    }
  }

  const page = await open(1280, 'light');
  const listening = page.waitForRequest((request) => request.url() === `${base}/v1/changes`);
  // By keyboard: past the navigation, and through it.
  await visit(page, '/', 'Overview');
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to content');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { level: 1, name: 'Service levels' }).waitFor();
  // Service levels, over another window.
  await page.getByLabel('Window').selectOption('1h');
  await page.getByText('over 1h').first().waitFor();
  assert.ok(await page.getByRole('heading', { name: 'agent response, P95' }).isVisible());
  await page.getByRole('region', { name: 'Measurements' }).getByText('agent_response').first().waitFor();
  // The history of one, and every alert.
  const answers = page.locator('section', { has: page.getByRole('heading', { name: 'agent response, P95' }) });
  await answers.getByText('History and histogram').click();
  await answers.getByRole('img', { name: 'missed' }).waitFor();
  await answers.getByRole('img', { name: 'histogram of durations' }).waitFor();
  // What is opened while the next picture of the page is under way stays open.
  await answers.getByText('History and histogram').click();
  await answers.getByRole('img', { name: 'missed' }).waitFor({ state: 'hidden' });
  let answer;
  const asked = new Promise((resolve) => {
    page.route('**/v1/sla?window=1h', async (route) => {
      resolve();
      await new Promise((go) => { answer = go; });
      await route.continue();
    }, { times: 1 });
  });
  await asked;
  await answers.getByText('History and histogram').click();
  const answered = page.waitForResponse('**/v1/sla?window=1h');
  answer();
  await (await answered).finished();
  await page.evaluate(() => new Promise((resolve) => { requestAnimationFrame(() => requestAnimationFrame(resolve)); }));
  await answers.getByRole('img', { name: 'missed' }).waitFor();
  await page.getByRole('region', { name: 'Alerts' }).getByText('agent fallback rate').waitFor();
  await visit(page, '/', 'Overview');
  await page.getByText('✓ none').waitFor();
  await page.getByRole('img', { name: 'by the minute' }).waitFor();
  await page.getByRole('heading', { name: 'Error budget' }).waitFor();
  // What happens elsewhere is shown without being asked for.
  await listening;
  const elsewhere = await start('shown', 'four');
  await page.getByRole('link', { name: elsewhere.id }).waitFor();
  // Sessions by state, one of them opened.
  await page.getByRole('link', { name: 'Sessions', exact: true }).click();
  await page.getByLabel('State').selectOption('waiting');
  await page.getByRole('link', { name: approved.id }).click();
  await page.getByRole('heading', { level: 1, name: approved.id }).waitFor();
  await page.getByText('an approval').waitFor();
  await page.getByText('number=one').waitFor();
  // Opened now, and still open when the session has ended.
  await page.getByText('Input and output').click();
  await page.getByRole('button', { name: 'Approve' }).click();
  await page.getByText('signal `go`').waitFor();
  assert.equal(await page.getByLabel('Signal').inputValue(), 'go');
  await page.getByRole('button', { name: 'Send signal' }).click();
  await page.getByText('✓ completed').first().waitFor();
  // Its events came by themselves, and its file is there; what the session says is text.
  await page.getByRole('region', { name: 'Events' }).getByText('session completed').waitFor();
  await page.getByText('a/b.txt', { exact: true }).click();
  await page.getByText('the result', { exact: true }).waitFor();
  // What comes after what, as a picture.
  await page.getByRole('region', { name: 'Graph' }).getByText('draft', { exact: true }).waitFor();
  await page.getByText('<b>bold</b>').waitFor();
  // Another session that goes on from before the decision, and waits for it again.
  await page.getByRole('button', { name: 'Fork after event 2', exact: true }).click();
  await page.getByRole('heading', { level: 1 }).filter({ hasNotText: approved.id }).waitFor();
  await page.getByText('an approval').waitFor();
  await page.getByRole('region', { name: 'Events' }).getByText('session imported').waitFor();
  await visit(page, `/sessions/${canceled.id}`, canceled.id);
  await page.getByRole('button', { name: 'Cancel' }).click();
  await page.getByText('– canceled').first().waitFor();
  await visit(page, `/sessions/${failed.id}`, failed.id);
  const events = page.getByRole('region', { name: 'Events' }).getByText('session failed');
  await events.first().waitFor();
  await page.getByRole('button', { name: 'Retry' }).click();
  await until('the retry', async () => (await call('GET', `/v1/sessions/${failed.id}/events`)).events.some((event) => event.type === 'session_retried'));
  await visit(page, '/sessions', 'Sessions');
  // Found by its workflow and by its label.
  await page.getByLabel('Workflow').fill('failing');
  await page.getByRole('button', { name: 'Search' }).click();
  await page.getByRole('link', { name: approved.id }).waitFor({ state: 'detached' });
  await page.getByRole('link', { name: failed.id }).waitFor();
  await page.getByLabel('Workflow').fill('');
  await page.getByLabel('Label').fill('number=one');
  await page.getByRole('button', { name: 'Search' }).click();
  await page.getByRole('link', { name: failed.id }).waitFor({ state: 'detached' });
  await page.getByRole('link', { name: approved.id }).waitFor();
  await page.getByLabel('Id').fill(approved.id);
  await page.getByRole('button', { name: 'Open' }).click();
  await page.getByRole('heading', { level: 1, name: approved.id }).waitFor();
  assert.deepEqual(problems, []);
  process.stdout.write('the dashboard: every page, at 390 and 1280 pixels, in light and dark, and all that can be done\n');
} catch (error) {
  process.stderr.write(`${error.stack ?? error}\n--- the node said:\n${node.lastLines()}\n`);
  process.exitCode = 1;
} finally {
  await browser?.close();
  await node.kill();
  await rm(directory, { recursive: true, force: true });
}
