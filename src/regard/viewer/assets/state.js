// What is being looked at. Every view draws from it; the address keeps it.

const defaults = {
  run: runs.length - 1,
  call: record.start[0],
  head: record.start[1],
  token: -1, // of the query text when direction is "out", of the key text when "in"
  direction: "out",
  scope: "head", // head | layer | model | rollout
  scale: run().calls.some((call) => call.keys > 48) ? "log" : "linear",
  measure: "mass", // mass | max, for pooled maps
  sinks: "show", // show | hide
  show: "", // a score that colours the map; empty: the patterns themselves
  sort: "", // a score that orders the map; empty: the model's order
  filter: "", // a score: heads beyond the bound are dimmed
  bound: 0, // as a share of the score's range
  side: "least", // least | most: which side of the bound is kept
  kind: "", // heads of other kinds are dimmed
  zoom: "", // "row0,row1,column0,column1", empty: everything
  link: 0.1, // the least weight that is drawn as a link
  theme: "", // "", light, dark
};
const allowed = {
  direction: ["out", "in"],
  scope: ["head", "layer", "model", "rollout"],
  scale: ["log", "linear"],
  measure: ["mass", "max"],
  sinks: ["show", "hide"],
  theme: ["", "light", "dark"],
  side: ["least", "most"],
  show: ["", ...scoreNames],
  filter: ["", ...scoreNames],
  sort: ["", ...scoreNames],
};

const state = { ...defaults };
const listeners = [];
let changed = new Set();

// Calls `draw` before the next frame whenever one of these parts of the state has changed.
function watch(names, draw) {
  listeners.push({ names, draw });
}

function set(change) {
  if (changed.size === 0) requestAnimationFrame(announce);
  for (const [name, value] of Object.entries(change)) {
    if (state[name] === value) continue;
    state[name] = value;
    changed.add(name);
  }
  // another run is another call of the same shape
  if (changed.has("run")) changed.add("call");
  runNumber = state.run;
  changed.add("address");
}

function announce() {
  const now = changed;
  changed = new Set();
  listeners.forEach(({ names, draw }) => names.some((name) => now.has(name)) && draw());
}

function address() {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== defaults[name]) parts.set(name, value);
  }
  return `#${parts}`;
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const next = { ...defaults };
  for (const [name, value] of parts) {
    if (!(name in defaults)) continue;
    if (name in allowed && !allowed[name].includes(value)) continue;
    next[name] = typeof defaults[name] === "number" ? Number(value) : value;
  }
  if (!(next.run in runs)) next.run = defaults.run;
  const call = run().calls[next.call];
  if (!call) next.call = defaults.call;
  if (!(next.head in run().calls[next.call].kinds)) next.head = 0;
  if (!Number.isInteger(next.token)) next.token = -1;
  for (const name of ["bound", "link"]) if (!Number.isFinite(next[name])) next[name] = 0;
  if (next.zoom.split(",").some((n) => n !== "" && !(Number(n) >= 0))) next.zoom = "";
  return next;
}

// A frame without an address of its own (srcdoc) refuses this; the view works without it.
function writeAddress() {
  try {
    history.replaceState(null, "", address());
  } catch {
    return;
  }
}

const currentCall = () => run().calls[state.call];
const tokenText = () =>
  record.texts[state.direction === "out" ? currentCall().query_text : currentCall().key_text];

// Another head; the token stays if the new call reads the same text.
function chooseHead(call, head) {
  const same = run().calls[call].scopeKey === currentCall().scopeKey;
  const sizes = run().calls[call].queries === currentCall().queries;
  set({ call, head, zoom: same && sizes ? state.zoom : "", token: same ? state.token : -1 });
}

function stepHead(by) {
  const heads = currentCall().heads;
  chooseHead(state.call, (state.head + by + heads) % heads);
}

function stepLayer(by) {
  const call = (state.call + by + run().calls.length) % run().calls.length;
  chooseHead(call, Math.min(state.head, run().calls[call].heads - 1));
}

function reverse() {
  const call = currentCall();
  const token = call.query_text === call.key_text ? state.token : -1;
  set({ direction: state.direction === "out" ? "in" : "out", token });
}
