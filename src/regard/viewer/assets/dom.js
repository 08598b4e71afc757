// Small helpers for the document. Text from the record enters it through textContent only.

const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const DIRECTION_MARKS = /[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

// A token as visible text: control characters become their symbols, a line break becomes ↵.
function visible(token) {
  if (token === "") return "∅";
  return token
    .replace(/\r?\n/g, "↵")
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f]/g, "␡")
    .replace(DIRECTION_MARKS, (c) => `⟨${c.charCodeAt(0).toString(16)}⟩`)
    .replace(/^ +$/, (spaces) => "␣".repeat(spaces.length));
}

function shorten(text, length) {
  const letters = [...text];
  return letters.length <= length ? text : letters.slice(0, length - 1).join("") + "…";
}

const pluralise = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const percent = (x) => (x > 0.995 && x < 1 ? ">99 %" : `${Math.round(100 * x)} %`);

// A weight with as many digits as its storage is exact to.
function formatWeight(value, error) {
  if (value === 0) return "0";
  if (value < 0) return `−${formatWeight(-value, error)}`;
  if (value < 0.0005) return value.toExponential(0).replace("e-", "e−");
  const digits = error < 0.001 ? 3 : 2;
  return value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(value) + 1e-9)));
}

function formatScore(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0) return `−${formatScore(-value)}`;
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  return size >= 10 ? value.toFixed(1) : value.toFixed(size >= 1 ? 2 : 3);
}

function showTip(event, ...content) {
  const tip = $("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 18;
  const y = below + box.height > innerHeight ? event.clientY - box.height - 12 : below;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${Math.max(8, y)}px`;
}

function hideTip() {
  $("tip").hidden = true;
}

function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Sizes a canvas for the screen's pixels; gives a context that draws in CSS pixels.
function prepareCanvas(canvas, width, height, ratio = window.devicePixelRatio || 1) {
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}
