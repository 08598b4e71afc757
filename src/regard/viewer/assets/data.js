// The record: a JSON header, and binary chunks that are inflated when first needed.

const record = JSON.parse($("header").textContent);
record.texts.forEach((text) => {
  text.special = new Set(text.special);
  text.glued = new Set(text.glued);
});
const visibleKeys = (object) =>
  Object.fromEntries(Object.entries(object).map(([name, value]) => [visible(name), value]));
record.glossary = visibleKeys(record.glossary);
record.kinds = record.kinds.map(visible);

// A run is one recording; a page that compares has two, and a third: what changed between them.
const runs = record.runs.map(readRun);
if (runs.length > 1) runs.push(changeRun(runs));
runs.forEach(addHeads);

const scoreNames = [...new Set(runs[0].calls.flatMap((call) => Object.keys(call.scores)))];
let runNumber = 0;
const run = () => runs[runNumber];

function readRun(given) {
  for (const call of [...given.calls, ...given.rollouts]) {
    call.name = visible(call.name);
    call.kinds = call.kinds.map((kind) => kind && visible(kind));
    call.scores = visibleKeys(call.scores);
    call.scopeKey = `${call.query_text},${call.key_text}`;
  }
  given.calls.forEach((call, index) => (call.index = index));
  return given;
}

// All heads of a run with their scores, and from where to where the scores go.
function addHeads(each) {
  each.heads = each.calls.flatMap((call) =>
    call.kinds.map((kind, head) => ({
      call,
      head,
      kind,
      scores: Object.fromEntries(
        Object.entries(call.scores).map(([name, values]) => [name, values[head]]),
      ),
    })),
  );
  const names = new Set(each.calls.flatMap((call) => Object.keys(call.scores)));
  each.ranges = Object.fromEntries(
    [...names].map((name) => {
      const values = each.heads.map((entry) => entry.scores[name]).filter(isNumber);
      return [name, values.length ? [Math.min(...values), Math.max(...values)] : [0, 1]];
    }),
  );
}

// Calls go by their layer, or, where two share a layer, by their place in the record.
const layersAreUnique =
  new Set(runs[0].calls.map((call) => call.layer)).size === runs[0].calls.length;
const callLabel = (call) => `${layersAreUnique ? call.layer : call.index}`;
const headLabel = (call, head) => `${callLabel(call)}.${call.numbers[head]}`;

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
const inflated = new Map();
const tables = new Map();

function decodeBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

async function inflate(index) {
  const bytes = decodeBase64($(`chunk-${index}`).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// The numbers that the codes of a chunk stand for. Codes 0 and 1 (under the floor) stand for 0.
function tableOf({ floor, top, last }) {
  const key = `${floor} ${top} ${last}`;
  if (!tables.has(key)) {
    const table = new Float32Array(last + 1);
    for (let c = 2; c <= last; c++) table[c] = floor * (top / floor) ** ((c - 2) / (last - 2));
    tables.set(key, table);
  }
  return tables.get(key);
}

// Whether all of a call's weights are there; of both calls, if it compares two.
const isWhole = (call) => Boolean((call.pair?.[0] ?? call).arrays.dense);

// An array of a call: { data, shape, table, error }; null if the record does not hold it.
function load(call, name) {
  const entry = call.arrays[name];
  if (!entry) return Promise.resolve(null);
  if (!inflated.has(entry.chunk)) {
    const promise = inflate(entry.chunk).then((buffer) => ({
      data: new TYPES[entry.dtype](buffer),
      shape: entry.shape,
      table: entry.codes ? tableOf(entry.codes) : null,
      error: entry.codes ? entry.codes.error : 0,
      floor: entry.codes ? entry.codes.floor : 0,
    }));
    inflated.set(entry.chunk, promise);
  }
  return inflated.get(entry.chunk);
}

// The sinks of a call: the first key, and keys that are no text.
function sinksOf(call) {
  const special = record.texts[call.key_text].special;
  const keys = [...special].filter((key) => key < call.keys);
  return special.has(0) ? keys : [0, ...keys];
}
