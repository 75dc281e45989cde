// Elements, without markup in strings: what comes from sessions is text, whatever it says.

const SVG = 'http://www.w3.org/2000/svg';
const SVG_TAGS = new Set(['svg', 'rect', 'line', 'text', 'g', 'title', 'path']);

export function h(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag) && (tag !== 'title') ? document.createElementNS(SVG, tag)
    : tag === 'title' ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

let released = Promise.resolve();

// Resolves when no pointer is pressed: what is replaced between a press and its release gets no click.
export function whenReleased() {
  return released;
}

window.addEventListener('pointerdown', () => {
  const pressed = new AbortController();
  released = new Promise((resolve) => {
    // The click comes after the release, and is to find what was pressed.
    const release = () => { pressed.abort(); setTimeout(resolve); };
    for (const end of ['pointerup', 'pointercancel', 'blur']) window.addEventListener(end, release, { signal: pressed.signal });
    // A release over a scroll bar or outside of the window is not told; the next move is.
    window.addEventListener('pointermove', ({ buttons }) => { if (buttons === 0) release(); }, { signal: pressed.signal });
  });
}, { capture: true });

// Draws a place anew. What was opened in it stays open, and what of it had the focus keeps it.
export function redraw(place, ...children) {
  const focused = place.contains(document.activeElement) && document.activeElement.tagName === 'SUMMARY' ? document.activeElement.textContent : null;
  const opened = new Set([...place.querySelectorAll('details[open] > summary')].map((summary) => summary.textContent));
  place.replaceChildren(...children);
  for (const summary of place.querySelectorAll('details > summary')) {
    summary.parentElement.open = opened.has(summary.textContent);
    if (summary.textContent === focused) summary.focus({ preventScroll: true });
  }
}

export function table(caption, columns, rows) {
  const head = columns.map(({ title, number }) => h('th', { scope: 'col', class: number && 'number' }, title));
  const body = rows.map((row) => h('tr', {}, columns.map(({ cell, number, text }) =>
    h('td', { class: number ? 'number' : text ? 'text' : null }, cell(row) ?? '–'))));
  if (rows.length === 0) return h('p', { class: 'quiet' }, `No ${caption.toLowerCase()}.`);
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    h('table', {}, h('thead', {}, h('tr', {}, head)), h('tbody', {}, body)));
}

const STATES = {
  met: ['good', '✓ met'], breached: ['bad', '✗ breached'], insufficient_data: ['quiet', '? too little data'],
  completed: ['good', '✓ completed'], failed: ['bad', '✗ failed'], canceled: ['quiet', '– canceled'],
  running: ['', '▶ running'], waiting: ['wait', '… waiting'], ready: ['', '▶ ready'], backoff: ['wait', '… backing off'],
  firing: ['bad', '✗ firing'], pending: ['wait', '… pending'], resolved: ['good', '✓ resolved'], inactive: ['quiet', '– inactive'],
  equal: ['good', '✓ equal'], differs: ['bad', '✗ differs'], incomplete: ['quiet', '? others did not answer'],
  skipped: ['quiet', '– skipped'], closed: ['good', '✓ closed'], open: ['bad', '✗ open'], half_open: ['wait', '… half open'],
};

export function state(name) {
  const [kind, text] = STATES[name] ?? ['', String(name ?? '–').replaceAll('_', ' ')];
  return h('span', { class: `state ${kind}` }, text);
}

export function ms(value) {
  if (value === null || value === undefined) return '–';
  if (value < 1000) return `${value.toFixed(value < 10 ? 2 : 1)} ms`;
  if (value < 120000) return `${(value / 1000).toFixed(2)} s`;
  if (value < 7200000) return `${(value / 60000).toFixed(1)} min`;
  return value < 172800000 ? `${(value / 3600000).toFixed(1)} h` : `${(value / 86400000).toFixed(1)} d`;
}

export function percent(share) {
  return share === null || share === undefined ? '–' : `${(100 * share).toFixed(2)} %`;
}

export function usd(micros) {
  return micros ? `$${(micros / 1e6).toFixed(4)}` : '–';
}

export function when(text) {
  return text ? h('time', { datetime: text, title: text }, new Date(text).toLocaleString()) : '–';
}

export function card(title, ...children) {
  return h('section', { class: 'card' }, h('h2', {}, title), ...children);
}
