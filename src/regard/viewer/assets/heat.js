// The heat map of one head: rows are queries, columns are the keys that they read.

const heat = { turn: 0, picture: null, hover: null, drag: null };
const MARGIN = { left: 104, top: 92, right: 62, bottom: 62 };

// The part that is shown, in tokens: [row, row, column, column].
function zoomWindow() {
  const { queries, keys } = currentCall();
  const all = [0, queries, 0, keys];
  const parts = state.zoom.split(",").map(Number);
  if (parts.length !== 4 || parts[1] <= parts[0] || parts[3] <= parts[2]) return all;
  return [parts[0], Math.min(parts[1], queries), parts[2], Math.min(parts[3], keys)];
}

function setZoom(row0, row1, column0, column1) {
  const { queries, keys } = currentCall();
  const fit = (a, b, size) => {
    const length = Math.min(size, Math.max(b - a, Math.min(4, size)));
    const start = Math.min(Math.max(0, (a + b - length) / 2), size - length);
    return [start, start + length].map((n) => Math.round(n * 100) / 100);
  };
  const [r0, r1] = fit(row0, row1, queries);
  const [c0, c1] = fit(column0, column1, keys);
  const all = r0 === 0 && c0 === 0 && r1 === queries && c1 === keys;
  set({ zoom: all ? "" : [r0, r1, c0, c1].join(",") });
}

function zoomBy(factor, row, column) {
  const [r0, r1, c0, c1] = zoomWindow();
  const r = row ?? (r0 + r1) / 2;
  const c = column ?? (c0 + c1) / 2;
  const to = (edge, centre) => centre + (edge - centre) * factor;
  setZoom(to(r0, r), to(r1, r), to(c0, c), to(c1, c));
}

// Numbers behind the picture: { values, rows, columns, high, low }.
async function heatMatrix(call, head) {
  if (call.pair) {
    const [before, after] = await Promise.all(call.pair.map((each) => heatMatrix(each, head)));
    const values = difference([before.values, after.values]);
    return { ...after, values, high: largestOf(values) || 1, low: Math.max(before.low, after.low) };
  }
  const weights = await weightsOf(call);
  if (weights.whole) return wholeMatrix(weights, head);
  return pooledMatrix(weights, head, await load(call, `pooled_${pooledName()}`));
}

const pooledName = () => (state.measure === "mass" ? "share" : "max");

function wholeMatrix(weights, head) {
  const { queries, keys } = weights.call;
  const factors = sinkFactors(weights, head);
  const sinks = state.sinks === "hide" ? sinksOf(weights.call) : [];
  const values = new Float32Array(queries * keys);
  const codes = weights.data.subarray(head * queries * keys, (head + 1) * queries * keys);
  const { table } = weights;
  let high = 0;
  for (let query = 0, at = 0; query < queries; query++) {
    const factor = factors[query];
    for (let key = 0; key < keys; key++, at++) values[at] = factor * table[codes[at]];
    for (const key of sinks) values[query * keys + key] = 0;
  }
  for (const value of values) if (value > high) high = value;
  const low = Math.max(weights.floor, 0.2 / keys);
  return { values, rows: queries, columns: keys, high: high || 1, low };
}

function pooledMatrix(weights, head, { data, shape, table }) {
  const [, rows, columns] = shape;
  const size = rows * columns;
  const values = Float32Array.from(data.subarray(head * size, (head + 1) * size), (c) => table[c]);
  if (state.sinks === "hide") hidePooledSinks(values, rows, columns, weights, head);
  const high = values.reduce((a, b) => Math.max(a, b), 0) || 1;
  return { values, rows, columns, high, low: state.measure === "mass" ? 0.1 / columns : 1e-3 };
}

// Takes out of each cell what the stored top keys say that sinks got there.
function hidePooledSinks(values, rows, columns, weights, head) {
  const { queries, keys } = weights.call;
  const sinks = sinksOf(weights.call);
  const sinkColumns = new Set(sinks.map((key) => Math.floor((key * columns) / keys)));
  if (state.measure === "max") {
    for (let row = 0; row < rows; row++) for (const c of sinkColumns) values[row * columns + c] = 0;
    return;
  }
  const mass = new Float32Array(rows);
  const counts = new Float32Array(rows);
  for (let query = 0; query < queries; query++) {
    const row = Math.floor((query * rows) / queries);
    counts[row] += 1;
    for (const key of sinks) {
      const weight = weights.value(head, query, key);
      mass[row] += weight;
      values[row * columns + Math.floor((key * columns) / keys)] -=
        weight / Math.ceil(queries / rows);
    }
  }
  for (let at = 0; at < values.length; at++) {
    const row = Math.floor(at / columns);
    const left = 1 - mass[row] / Math.max(1, counts[row]);
    values[at] = left > 0.005 ? Math.max(0, values[at]) / left : 0;
  }
}

async function drawHeat() {
  const turn = ++heat.turn;
  const call = currentCall();
  const { head } = state;
  const matrix = await heatMatrix(call, head);
  const weights = await weightsOf(call);
  const pair = call.pair && (await Promise.all(call.pair.map(weightsOf)));
  const marginals = {
    received: await loadMarginal(call, head, "received"),
    entropy: await loadMarginal(call, head, "entropy"),
  };
  if (turn !== heat.turn) return;
  const scale = makeScale(state.scale, matrix.low, matrix.high, run().compares);
  const picture = paintMatrix(matrix.values, matrix.rows, matrix.columns, scale);
  Object.assign(heat, { call, head, matrix, weights, pair, scale, picture, marginals });
  placeHeat();
  renderHeat();
}

// Size of the plot on the screen: square cells if they fit.
function placeHeat() {
  const width = $("heat").parentElement.clientWidth;
  const [r0, r1, c0, c1] = zoomWindow();
  const compact = width < 520;
  const left = compact ? 64 : MARGIN.left;
  const right = compact ? 40 : MARGIN.right;
  const cell = Math.min((width - left - right) / (c1 - c0), 560 / (r1 - r0), 44);
  const stretch = Math.min((width - left - right) / (c1 - c0), cell * 1.35);
  heat.plot = {
    left,
    top: MARGIN.top,
    width: Math.round(stretch * (c1 - c0)),
    height: Math.round(cell * (r1 - r0)),
    cellWidth: stretch,
    cellHeight: cell,
  };
  heat.width = width;
  heat.height = MARGIN.top + heat.plot.height + MARGIN.bottom;
}

function renderHeat() {
  if (!heat.picture) return;
  const context = prepareCanvas($("heat"), heat.width, heat.height);
  drawCells(context);
  drawAxes(context);
  drawLegend();
  drawHeatOver();
  $("heat").dataset.drawn = `${heat.call.index}.${heat.head}`;
}

// Pooled maps give way to exact top weights once single cells can be seen.
const showsExactCells = () =>
  heat.weights.whole ||
  (!run().compares && Math.min(heat.plot.cellWidth, heat.plot.cellHeight) >= 3);

function drawCells(context) {
  const { left, top, width, height, cellWidth } = heat.plot;
  const [r0, r1, c0, c1] = zoomWindow();
  const { matrix, picture, call } = heat;
  const x = matrix.columns / call.keys;
  const y = matrix.rows / call.queries;
  context.fillStyle = rampColour(heat.scale.zero, heat.scale.colours);
  context.fillRect(left, top, width, height);
  context.imageSmoothingEnabled = cellWidth / x < 1;
  context.imageSmoothingQuality = "high";
  const exact = showsExactCells();
  context.globalAlpha = exact && !heat.weights.whole ? 0.22 : 1;
  const source = [c0 * x, r0 * y, (c1 - c0) * x, (r1 - r0) * y];
  context.drawImage(picture, ...source, left, top, width, height);
  context.globalAlpha = 1;
  if (exact && !heat.weights.whole) drawTopCells(context);
  context.strokeStyle = cssColour("line");
  context.lineWidth = 1;
  context.strokeRect(left - 0.5, top - 0.5, width + 1, height + 1);
}

function drawTopCells(context) {
  const { left, top, cellWidth, cellHeight } = heat.plot;
  const [r0, r1, c0, c1] = zoomWindow();
  const { weights, head } = heat;
  const { queries } = weights.call;
  const factors = sinkFactors(weights, head);
  const sinks = new Set(state.sinks === "hide" ? sinksOf(weights.call) : []);
  const scale = topScale();
  for (let query = Math.floor(r0); query < Math.min(r1, queries); query++) {
    const start = (head * queries + query) * weights.k;
    for (let at = start; at < start + weights.k; at++) {
      const key = weights.top[at];
      if (key < Math.floor(c0) || key >= c1 || sinks.has(key)) continue;
      const x = left + Math.max(0, (key - c0) * cellWidth);
      const y = top + Math.max(0, (query - r0) * cellHeight);
      context.fillStyle = rampColour(scale.at(factors[query] * weights.table[weights.data[at]]));
      const right = Math.min(left + (key + 1 - c0) * cellWidth, left + heat.plot.width);
      const bottom = Math.min(top + (query + 1 - r0) * cellHeight, top + heat.plot.height);
      context.fillRect(x, y, right - x, bottom - y);
    }
  }
}

const topScale = () => makeScale(state.scale, 1e-3, 1);

// The token pair under the pointer, or null.
function cellAt(event) {
  const box = $("heat").getBoundingClientRect();
  const { left, top, width, height, cellWidth, cellHeight } = heat.plot;
  const x = event.clientX - box.left - left;
  const y = event.clientY - box.top - top;
  if (x < 0 || y < 0 || x >= width || y >= height) return null;
  const [r0, , c0] = zoomWindow();
  const [row, column] = [r0 + y / cellHeight, c0 + x / cellWidth];
  return { row, column, query: Math.floor(row), key: Math.floor(column) };
}

function describeCell({ query, key }) {
  const { call, head, weights, matrix } = heat;
  const reader = visible(record.texts[call.query_text].tokens[query + call.first_query]);
  const read = visible(record.texts[call.key_text].tokens[key]);
  const hidden = state.sinks === "hide" && sinksOf(call).includes(key);
  if (heat.pair) return describePair({ query, key }, reader, read);
  const weight = hidden ? 0 : weights.value(head, query, key) * sinkFactors(weights, head)[query];
  const missing = weights.whole
    ? `under ${formatWeight(weights.floor, 1)}`
    : `not in its top ${weights.k}`;
  const value = hidden ? "hidden sink" : weight > 0 ? formatWeight(weight, weights.error) : missing;
  const lines = [
    element("div", {}, element("bdi", {}, reader), " → ", element("bdi", {}, read)),
    element("strong", {}, value),
    element("div", { className: "faint" }, `token ${query + call.first_query} reads token ${key}`),
  ];
  if (!showsExactCells()) {
    const row = Math.floor((query * matrix.rows) / call.queries);
    const column = Math.floor((key * matrix.columns) / call.keys);
    const cell = matrix.values[row * matrix.columns + column];
    const what = state.measure === "mass" ? "share of its rows’ attention" : "largest weight";
    lines.push(element("div", { className: "faint" }, `cell: ${what} ${formatWeight(cell, 1)}`));
  }
  return lines;
}

// The weight in both runs, as stored.
function describePair({ query, key }, reader, read) {
  const values = heat.pair.map((weights) => weights.value(heat.head, query, key));
  const shown = values.map((value) => formatWeight(value, heat.weights.error));
  return [
    element("div", {}, element("bdi", {}, reader), " → ", element("bdi", {}, read)),
    element("strong", {}, `${shown[0]}, then ${shown[1]}`),
    element("div", { className: "faint" }, `token ${query + heat.call.first_query}, token ${key}`),
  ];
}

function moveOnHeat(event) {
  if (!heat.plot) return;
  if (heat.drag) return dragHeat(event);
  heat.hover = cellAt(event);
  drawHeatOver();
  if (heat.hover) showTip(event, ...describeCell(heat.hover));
  else hideTip();
}

// Dragging draws a box to zoom into; once zoomed, it moves the picture (with shift, a box again).
function startDrag(event) {
  const cell = heat.plot && cellAt(event);
  if (!cell || event.button !== 0) return;
  $("heat").setPointerCapture(event.pointerId);
  const pans = state.zoom !== "" && !event.shiftKey;
  heat.drag = { from: cell, x: event.clientX, y: event.clientY, window: zoomWindow(), pans };
}

function dragHeat(event) {
  const { drag, plot } = heat;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  drag.moved = drag.moved || Math.hypot(x, y) > 4;
  if (!drag.moved) return;
  hideTip();
  if (drag.pans) {
    const [r0, r1, c0, c1] = drag.window;
    const rows = y / plot.cellHeight;
    const columns = x / plot.cellWidth;
    return setZoom(r0 - rows, r1 - rows, c0 - columns, c1 - columns);
  }
  const box = $("heat").getBoundingClientRect();
  const clamp = (value, low, size) => Math.min(low + size, Math.max(low, value));
  drag.box = [
    clamp(drag.x - box.left, plot.left, plot.width),
    clamp(drag.y - box.top, plot.top, plot.height),
    clamp(event.clientX - box.left, plot.left, plot.width),
    clamp(event.clientY - box.top, plot.top, plot.height),
  ];
  drawHeatOver();
}

function endDrag(event) {
  const { drag, plot } = heat;
  heat.drag = null;
  if (!drag) return;
  if (!drag.moved) {
    const { query, key } = drag.from;
    const token = state.direction === "out" ? query + heat.call.first_query : key;
    return set({ token: token === state.token ? -1 : token });
  }
  if (!drag.box) return;
  const [r0, , c0] = drag.window;
  const rows = [drag.box[1], drag.box[3]].map((y) => r0 + (y - plot.top) / plot.cellHeight);
  const columns = [drag.box[0], drag.box[2]].map((x) => c0 + (x - plot.left) / plot.cellWidth);
  setZoom(Math.min(...rows), Math.max(...rows), Math.min(...columns), Math.max(...columns));
  event.preventDefault();
}

// The wheel zooms once the map has the focus (or with Ctrl), so that it never traps the page.
function wheelOnHeat(event) {
  const cell = heat.plot && cellAt(event);
  if (!cell || !(event.ctrlKey || event.metaKey || document.activeElement === $("heat"))) return;
  event.preventDefault();
  zoomBy(1.0018 ** event.deltaY, cell.row, cell.column);
}

function keyOnHeat(event) {
  const [r0, r1, c0, c1] = zoomWindow();
  const step = (r1 - r0) / 8;
  const keys = {
    "+": () => zoomBy(0.7),
    "=": () => zoomBy(0.7),
    "-": () => zoomBy(1 / 0.7),
    0: () => set({ zoom: "" }),
  };
  if (state.zoom) {
    keys.ArrowUp = () => setZoom(r0 - step, r1 - step, c0, c1);
    keys.ArrowDown = () => setZoom(r0 + step, r1 + step, c0, c1);
    keys.ArrowLeft = () => setZoom(r0, r1, c0 - step, c1 - step);
    keys.ArrowRight = () => setZoom(r0, r1, c0 + step, c1 + step);
  }
  if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  event.stopPropagation();
  keys[event.key]();
}

function drawHeatControls() {
  press("scale", state.scale);
  press("measure", state.measure);
  $("measure").hidden = isWhole(currentCall());
  const { queries, keys } = currentCall();
  const label = headLabel(currentCall(), state.head);
  $("heat-title").textContent = `Head ${label} as a map` + (run().compares ? ": what changed" : "");
  $("heat").setAttribute(
    "aria-label",
    `Heat map of head ${label}: ${queries} queries by ${keys} keys. ` +
      "Plus and minus zoom, arrows move, zero resets.",
  );
  $("zoom-reset").disabled = !state.zoom;
}

function heatCaption(label) {
  const [low, high] = [heat.scale.low, heat.scale.high].map((value) => formatWeight(value, 1));
  const sinks = state.sinks === "hide" ? ", sinks hidden" : "";
  const which = runs.length > 1 ? ` (${visible(run().name)})` : "";
  const source = `${visible(record.title)}, ${visible(record.model)}${which}`;
  return `${source}, head ${label}: ${state.scale} scale from ${low} to ${high}${sinks}.`;
}

function heatDrawing() {
  const label = headLabel(heat.call, heat.head);
  return {
    name: `attention-head-${label}`,
    width: heat.width,
    height: heat.height,
    draw: (context) => {
      drawCells(context);
      drawAxes(context);
      drawSelection(context);
    },
    caption: heatCaption(label),
  };
}

function startHeat() {
  const canvas = $("heat");
  canvas.onpointermove = moveOnHeat;
  canvas.onpointerdown = startDrag;
  canvas.onpointerup = endDrag;
  canvas.onpointerleave = () => {
    heat.hover = null;
    hideTip();
    drawHeatOver();
  };
  canvas.ondblclick = () => set({ zoom: "" });
  canvas.addEventListener("wheel", wheelOnHeat, { passive: false });
  canvas.onkeydown = keyOnHeat;
  chooseWith("scale", (scale) => set({ scale }));
  chooseWith("measure", (measure) => set({ measure }));
  $("zoom-in").onclick = () => zoomBy(0.6);
  $("zoom-out").onclick = () => zoomBy(1 / 0.6);
  $("zoom-reset").onclick = () => set({ zoom: "" });
  exportWith("heat", heatDrawing);
  watch(["call", "head", "sinks", "measure", "scale", "theme", "zoom", "size"], drawHeatControls);
  watch(["call", "head", "sinks", "measure", "scale", "theme"], drawHeat);
  watch(["zoom", "size"], () => {
    if (!heat.picture || heat.call !== currentCall()) return;
    placeHeat();
    renderHeat();
  });
  watch(["token", "direction"], drawHeatOver);
  drawHeatControls();
}
