// Rows and columns of attention weights, from whichever form the record holds.
// Row: what one query reads, by key. Column: who reads one key, by query.

// All weights are stored: (H, Lq, Lk) codes.
class WholeWeights {
  constructor(call, { data, table, error, floor }) {
    Object.assign(this, { call, data, table, error, floor });
    this.whole = true;
  }

  value(head, query, key) {
    const { queries, keys } = this.call;
    return this.table[this.data[(head * queries + query) * keys + key]];
  }

  addRow(head, query, sum, factor) {
    const { queries, keys } = this.call;
    const start = (head * queries + query) * keys;
    for (let key = 0; key < keys; key++) sum[key] += factor * this.table[this.data[start + key]];
  }

  addColumn(head, key, sum, factors) {
    const { queries, keys } = this.call;
    let at = head * queries * keys + key;
    for (let query = 0; query < queries; query++, at += keys) {
      sum[query] += factors[query] * this.table[this.data[at]];
    }
  }

  sinkMass(head, sinks) {
    return Float32Array.from({ length: this.call.queries }, (_, query) =>
      sinks.reduce((mass, key) => mass + this.value(head, query, key), 0),
    );
  }
}

// The largest k weights of each query are stored: (H, Lq, k) keys and codes; key Lk means none.
class TopWeights {
  constructor(call, keys, weights) {
    Object.assign(this, { call, top: keys.data, data: weights.data, k: keys.shape[2] });
    Object.assign(this, { table: weights.table, error: weights.error, floor: weights.floor });
    this.whole = false;
  }

  value(head, query, key) {
    const start = (head * this.call.queries + query) * this.k;
    for (let at = start; at < start + this.k; at++) {
      if (this.top[at] === key) return this.table[this.data[at]];
    }
    return 0;
  }

  addRow(head, query, sum, factor) {
    const start = (head * this.call.queries + query) * this.k;
    for (let at = start; at < start + this.k; at++) {
      if (this.top[at] < this.call.keys) sum[this.top[at]] += factor * this.table[this.data[at]];
    }
  }

  addColumn(head, key, sum, factors) {
    const { queries } = this.call;
    const start = head * queries * this.k;
    for (let at = 0; at < queries * this.k; at++) {
      if (this.top[start + at] !== key) continue;
      const query = Math.floor(at / this.k);
      sum[query] += factors[query] * this.table[this.data[start + at]];
    }
  }

  sinkMass(head, sinks) {
    return Float32Array.from({ length: this.call.queries }, (_, query) =>
      sinks.reduce((mass, key) => mass + this.value(head, query, key), 0),
    );
  }
}

const loadedWeights = new Map();

function weightsOf(call) {
  if (call.pair) return weightsOf(call.pair[1]);
  if (!loadedWeights.has(call)) loadedWeights.set(call, makeWeights(call));
  return loadedWeights.get(call);
}

async function makeWeights(call) {
  const names = ["dense", "top_keys", "top_weights"];
  const [dense, keys, weights] = await Promise.all(names.map((name) => load(call, name)));
  return dense ? new WholeWeights(call, dense) : new TopWeights(call, keys, weights);
}

// What each row of a head is multiplied by once its sinks are gone: 1 / (1 − their mass).
// A row that reads sinks alone has nothing left to show.
function sinkFactors(weights, head) {
  const factors = new Float32Array(weights.call.queries).fill(1);
  if (state.sinks === "show") return factors;
  const mass = weights.sinkMass(head, sinksOf(weights.call));
  return factors.map((_, query) => (mass[query] < 0.995 ? 1 / (1 - mass[query]) : 0));
}

// Rollouts of the texts of the present call: all layers in one map.
const rollouts = () =>
  run().rollouts.filter((rollout) => rollout.scopeKey === currentCall().scopeKey);

// The scope that is shown: not every call has a rollout.
const scope = () => (state.scope === "rollout" && !rollouts().length ? "head" : state.scope);

// The heads that the reader averages.
function scopeHeads() {
  const call = currentCall();
  if (scope() === "head") return [{ call, head: state.head }];
  const calls = {
    layer: () => [call],
    model: () => run().calls.filter((c) => c.scopeKey === call.scopeKey),
    rollout: rollouts,
  }[scope()]();
  return calls.flatMap((c) => c.kinds.map((_, head) => ({ call: c, head })));
}

// What the token reads ("out"), or who reads it ("in"), averaged over the scope:
// { values by token of the other side, total (all attention there is), error, floor, whole }.
async function readScope(token, direction) {
  const heads = scopeHeads();
  if (!run().compares) return readHeads(heads, token, direction);
  const readings = await Promise.all(
    [0, 1].map((n) => {
      const own = heads.map(({ call, head }) => ({ call: call.pair[n], head }));
      return readHeads(own, token, direction);
    }),
  );
  if (readings.includes(null)) return null;
  const values = difference(readings.map((reading) => reading.values));
  return { ...readings[1], values, compares: true };
}

async function readHeads(heads, token, direction) {
  const all = await Promise.all(heads.map(({ call }) => weightsOf(call)));
  const out = direction === "out";
  const first = heads[0].call;
  const text = record.texts[out ? first.key_text : first.query_text];
  const values = new Float32Array(text.tokens.length);
  let total = 0;
  let counted = 0;
  for (let n = 0; n < heads.length; n++) {
    const { call, head } = heads[n];
    const place = out ? token - call.first_query : token;
    if (place < 0 || place >= (out ? call.queries : call.keys)) continue;
    total += out
      ? addOut(all[n], head, place, values)
      : await addIn(all[n], head, place, values.subarray(call.first_query));
    counted += 1;
  }
  if (!counted) return null;
  for (let i = 0; i < values.length; i++) values[i] /= counted;
  const { error, floor, whole, k } = all[0];
  return { values, total: total / counted, error, floor, whole, k };
}

function addOut(weights, head, query, values) {
  const hide = state.sinks === "hide";
  const sinks = sinksOf(weights.call);
  const mass = hide ? sinks.reduce((m, key) => m + weights.value(head, query, key), 0) : 0;
  if (mass >= 0.995) return 0;
  const kept = sinks.map((key) => values[key]);
  weights.addRow(head, query, values, 1 / (1 - mass));
  if (hide) sinks.forEach((key, n) => (values[key] = kept[n]));
  return 1;
}

async function addIn(weights, head, key, values) {
  const hide = state.sinks === "hide";
  if (hide && sinksOf(weights.call).includes(key)) return 0;
  weights.addColumn(head, key, values, sinkFactors(weights, head));
  if (hide) return NaN; // what it receives from rows made longer is known only where all is stored
  const received = await load(weights.call, "received");
  if (received.shape[1] < weights.call.keys) return NaN; // only means over neighbours are stored
  return received.table[received.data[head * weights.call.keys + key]];
}
