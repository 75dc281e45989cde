// Which page is shown, and that it stays current. A page is a function that returns its elements, and is called again
// when the node says that something has changed, and every few seconds in any case; one with `live` keeps itself current.

import { setToken, whenChanged } from '/ui/api.js';
import { h, whenReleased } from '/ui/dom.js';
import { cluster, overview, sessions, sla, work } from '/ui/pages.js';
import { session } from '/ui/session.js';

const REFRESH_MS = 5000;
// No page is drawn sooner after it was drawn, however much happens.
const REST_MS = 1500;
const main = document.getElementById('content');
const status = document.getElementById('status');

const ROUTES = [
  [/^\/$/, overview, 'Overview'],
  [/^\/sla$/, sla, 'SLA'],
  [/^\/sessions$/, sessions, 'Sessions'],
  [/^\/sessions\/([^/]+)$/, session, 'Session'],
  [/^\/work$/, work, 'Queues and workers'],
  [/^\/cluster$/, cluster, 'Cluster'],
];

let shown = new AbortController();
let wake = () => {};
let isListening = false;

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

// Without the stream, pages are drawn every few seconds.
async function listen() {
  if (isListening) return;
  isListening = true;
  for (;;) {
    await whenChanged(() => wake()).catch(() => {});
    await pause(REFRESH_MS);
  }
}

function signIn() {
  const input = h('input', { type: 'password', id: 'token', autocomplete: 'current-password', required: true });
  const submit = (event) => {
    event.preventDefault();
    setToken(input.value);
    show();
  };
  main.replaceChildren(h('h1', {}, 'Sign in'), h('p', {}, 'This cluster asks for a token.'),
    h('form', { onsubmit: submit }, h('label', { for: 'token' }, 'Token', input), h('button', {}, 'Sign in')));
  input.focus();
}

// Whoever types or has opened something is not disturbed.
function isBusy() {
  const active = document.activeElement;
  return document.hidden || main.querySelector('details[open]') !== null || (main.contains(active) && ['INPUT', 'SELECT', 'TEXTAREA'].includes(active.tagName));
}

async function show() {
  shown.abort();
  shown = new AbortController();
  const { signal } = shown;
  const [path, query = ''] = (location.hash.slice(1) || '/').split('?');
  const route = ROUTES.find(([pattern]) => pattern.test(path)) ?? ROUTES[0];
  const [pattern, page, title] = route;
  const argument = pattern.exec(path)?.[1];
  document.title = `${title} · Orchestra`;
  for (const link of document.querySelectorAll('nav a')) {
    const target = link.getAttribute('href').slice(1);
    const isCurrent = target === '/' ? path === '/' : path.startsWith(target);
    if (isCurrent) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  let first = true;
  while (!signal.aborted) {
    if (first || !isBusy()) {
      try {
        const elements = await page({ argument, query: new URLSearchParams(query), signal, refresh: show });
        await whenReleased();
        if (signal.aborted) return;
        // It may have been opened or typed in while the node answered.
        if (elements && (first || !isBusy())) {
          const { scrollX, scrollY } = window;
          main.replaceChildren(...elements);
          window.scrollTo(scrollX, scrollY);
        }
        status.textContent = '';
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401) { signIn(); return; }
        status.textContent = `Not current: ${error.message}`;
        if (first) main.replaceChildren(h('h1', {}, title), h('p', {}, error.message));
      }
      first = false;
    }
    if (page.live) return;
    listen();
    const changed = new Promise((resolve) => { wake = resolve; });
    await pause(REST_MS);
    await Promise.race([changed, pause(REFRESH_MS)]);
  }
}

window.addEventListener('hashchange', () => { show(); main.focus({ preventScroll: true }); });
show();
