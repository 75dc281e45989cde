// What the tests of the dashboard share.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { chromium } from 'playwright-core';

export const PATIENCE_MS = 30_000;

export function freePort() {
  return new Promise((resolve) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => resolve(port)); });
  });
}

export async function until(what, look) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what} did not come to pass`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}

// A process of the program, and what it says.
export function orchestra(args) {
  const child = spawn(process.env.BINARY, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let log = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => { log += data; });
  const ended = new Promise((resolve) => { child.on('exit', resolve); });
  return {
    lastLines: () => log.split('\n').slice(-20).join('\n'),
    says: (text) => log.includes(text),
    kill: async () => {
      child.kill('SIGKILL');
      await ended;
    },
  };
}

// Calls of the API of the node at `base`.
export function caller(base) {
  return async (method, path, body, headers = {}) => {
    const text = typeof body === 'string' ? body : JSON.stringify(body);
    const answer = await fetch(base + path, { method, headers, body: body === undefined ? undefined : text });
    assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${await answer.clone().text()}`);
    return answer.json();
  };
}

export function chrome() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
}
