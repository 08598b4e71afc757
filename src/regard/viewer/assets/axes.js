// Around the heat map: token labels, marginals, legend; and above it, selection and pointer.

const LABEL_SPACING = 12;
const TICK_SPACING = 26;

function drawAxes(context) {
  const { left, top, width, height } = heat.plot;
  const [r0, r1, c0, c1] = zoomWindow();
  const { call } = heat;
  const queries = record.texts[call.query_text];
  const keys = record.texts[call.key_text];
  context.font = "11.5px system-ui, sans-serif";
  context.textBaseline = "middle";
  const rowAt = (i) => top + (i + 0.5 - r0) * heat.plot.cellHeight;
  const columnAt = (j) => left + (j + 0.5 - c0) * heat.plot.cellWidth;
  const room = Math.max(5, Math.floor(left / 7.4));
  labelled(r0, r1, heat.plot.cellHeight, (i, numbered) => {
    const label = tokenLabel(queries, i + call.first_query, room, numbered);
    drawLabel(context, label, left - 8, rowAt(i), 0);
  });
  labelled(c0, c1, heat.plot.cellWidth, (j, numbered) => {
    drawLabel(context, tokenLabel(keys, j, 11, numbered), columnAt(j), top - 8, -Math.PI / 2);
  });
  drawReceived(context, columnAt);
  drawEntropy(context, rowAt);
  context.fillStyle = cssColour("muted");
  context.font = "italic 11.5px system-ui, sans-serif";
  context.textAlign = "left";
  context.fillText("is read →", left + 2, 8);
  context.textAlign = "right";
  context.fillText("reads ↓", left - 8, top - 24);
  context.fillText("entropy", Math.min(heat.width, left + width + 50), top + height + 9);
}

// Calls `draw` for whole tokens in view: each one if there is room, else round numbers of them.
function labelled(from, to, cell, draw) {
  const every = cell >= LABEL_SPACING ? 1 : roundStep(TICK_SPACING / cell);
  for (let i = Math.ceil((from - 0.3) / every) * every; i + 0.6 < to; i += every) {
    draw(i, every > 1);
  }
}

// The smallest of 1, 2, 5, 10, 20, 50, … that is not below `least`.
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((n) => n * power >= least - 1e-9);
}

// The words of a label, each with its colour: the token, and before it its number.
function tokenLabel(text, index, length, numbered) {
  const number = numbered ? `${index} ` : "";
  const name = isPatch(text, index) ? text.tokens[index].replace("patch ", "") : text.tokens[index];
  const token = shorten(visible(name), Math.max(3, length - number.length));
  const colour = cssColour(text.special.has(index) ? "muted" : "ink");
  return [
    [number, cssColour("muted")],
    [token, colour],
  ];
}

// Ends at x, y; turned upwards (angle ≠ 0), it starts there.
function drawLabel(context, words, x, y, angle) {
  const widths = words.map(([word]) => context.measureText(word).width);
  context.save();
  context.translate(x, y);
  context.rotate(angle);
  context.textAlign = "left";
  let at = angle ? 0 : -widths[0] - widths[1];
  words.forEach(([word, colour], n) => {
    context.fillStyle = colour;
    if (word) context.fillText(word, at, 0);
    at += widths[n];
  });
  context.restore();
}

// What each key received, or each query's entropy; of two runs, what changed.
async function loadMarginal(call, head, name) {
  if (call.pair) {
    return difference(await Promise.all(call.pair.map((each) => loadMarginal(each, head, name))));
  }
  const { data, shape, table } = await load(call, name);
  const [, cells] = shape;
  const length = name === "received" ? call.keys : call.queries;
  const first = head * cells;
  // of a very large model only means over neighbours are stored
  return Float32Array.from({ length }, (_, i) => table[data[first + Math.floor((i * cells) / length)]]);
}

const marginalColour = (value) =>
  cssColour(!run().compares ? "bar" : value < 0 ? "less" : "more");

// Below: how much each key received, summed over all queries; scaled to the keys in view.
function drawReceived(context, columnAt) {
  const { left, top, height, width, cellWidth } = heat.plot;
  const [, , c0, c1] = zoomWindow();
  const values = heat.marginals.received.slice();
  if (state.sinks === "hide") for (const key of sinksOf(heat.call)) values[key] = 0;
  const inView = values.subarray(Math.floor(c0), Math.ceil(c1));
  const high = largestOf(inView) || 1;
  const base = top + height + 6;
  const bar = Math.max(1, cellWidth - 1);
  for (let j = Math.floor(c0); j < c1; j++) {
    const x = Math.max(left, columnAt(j) - bar / 2);
    const end = Math.min(left + width, columnAt(j) + bar / 2);
    context.fillStyle = marginalColour(values[j]);
    context.fillRect(x, base, Math.max(0, end - x), (38 * Math.abs(values[j])) / high);
  }
  context.fillStyle = cssColour("muted");
  context.font = "italic 11.5px system-ui, sans-serif";
  context.textAlign = "right";
  context.fillText("received", left - 8, base + 8);
  context.font = "10.5px system-ui, sans-serif";
  context.fillText(`max ${formatScore(high)}`, left - 8, base + 23);
}

// Right: how spread out each query's attention is; a full bar is spread evenly over all keys.
function drawEntropy(context, rowAt) {
  const { left, top, width, cellHeight, height } = heat.plot;
  const [r0, r1] = zoomWindow();
  const values = heat.marginals.entropy;
  const high = Math.log(heat.call.keys) || 1;
  const space = Math.min(46, heat.width - left - width - 10);
  const bar = Math.max(1, cellHeight - 1);
  for (let i = Math.floor(r0); i < r1; i++) {
    const y = Math.max(top, rowAt(i) - bar / 2);
    const end = Math.min(top + height, rowAt(i) + bar / 2);
    context.fillStyle = marginalColour(values[i]);
    const length = (space * Math.abs(values[i])) / high;
    context.fillRect(left + width + 6, y, length, Math.max(0, end - y));
  }
}

function drawLegend() {
  const exact = showsExactCells() && !heat.weights.whole;
  const scale = exact ? topScale() : heat.scale;
  const stops = Array.from({ length: 9 }, (_, i) => rampColour(i / 8, scale.colours)).join(",");
  $("legend-ramp").style.background = `linear-gradient(to right, ${stops})`;
  const middle = scale.kind === "log" ? Math.sqrt(scale.low * scale.high) : scale.high / 2;
  const ticks = [scale.low, middle, scale.high].map((value) => formatWeight(value, 1));
  if (scale.kind === "log") ticks[0] = `≤ ${ticks[0]}`;
  if (scale.isSigned) ticks.splice(0, 3, `−${ticks[2]}`, "0", `+${ticks[2]}`);
  $("legend-ticks").replaceChildren(...ticks.map((tick) => element("span", {}, tick)));
  $("legend-text").textContent = legendText(exact);
}

function legendText(exact) {
  const { weights, matrix, call } = heat;
  const error = `±${(100 * weights.error).toFixed(weights.error < 0.001 ? 2 : 1)} %`;
  const sinks = state.sinks === "hide";
  if (run().compares) return "Purple: less than before. Green: more.";
  if (weights.whole) {
    const floor = weights.floor;
    const under = floor > 1e-4 ? `; those under ${formatWeight(floor, 1)} are drawn as none` : "";
    const hidden = sinks ? " Sinks are hidden, the rest of each row is scaled to sum to 1." : "";
    return `Weight, stored to ${error}${under}.${hidden}`;
  }
  if (exact) return (
      `Weights of the ${weights.k} largest keys of each query, stored to ${error}; ` +
      "the pale ground is the map of cells."
    );
  const [h, w] = [call.queries / matrix.rows, call.keys / matrix.columns].map(Math.ceil);
  const what =
    state.measure === "mass"
      ? "the share of its rows’ attention that goes to its columns"
      : "the largest weight in it";
  const hidden = sinks ? " Sinks are taken out where they are among the stored keys." : "";
  return `Each cell is ${h} × ${w} tokens: ${what}.${hidden} Zoom in to see single weights.`;
}

function drawHeatOver() {
  if (!heat.plot) return;
  const context = prepareCanvas($("heat-over"), heat.width, heat.height);
  drawSelection(context);
  if (heat.hover) drawPointer(context);
  if (heat.drag?.box) {
    const [x0, y0, x1, y1] = heat.drag.box;
    context.strokeStyle = cssColour("in");
    context.lineWidth = 1.5;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

// The chosen token: its row if it reads, its column if it is read.
function drawSelection(context) {
  if (state.token < 0) return;
  const { left, top, width, height, cellWidth, cellHeight } = heat.plot;
  const [r0, r1, c0, c1] = zoomWindow();
  const thin = Math.min(cellWidth, cellHeight) < 6;
  context.strokeStyle = cssColour(state.direction);
  context.lineWidth = thin ? 1 : 2;
  const around = thin ? 1.5 : 0;
  if (state.direction === "out") {
    const row = state.token - heat.call.first_query;
    const y = top + (row - r0) * cellHeight - around;
    const tall = cellHeight + 2 * around;
    if (row + 1 > r0 && row < r1) context.strokeRect(left - 1, y, width + 2, tall);
  } else {
    const x = left + (state.token - c0) * cellWidth - around;
    const wide = cellWidth + 2 * around;
    if (state.token + 1 > c0 && state.token < c1) context.strokeRect(x, top - 1, wide, height + 2);
  }
}

function drawPointer(context) {
  const { left, top, width, height, cellWidth, cellHeight } = heat.plot;
  const [r0, , c0] = zoomWindow();
  const x = left + (heat.hover.key + 0.5 - c0) * cellWidth;
  const y = top + (heat.hover.query + 0.5 - r0) * cellHeight;
  context.strokeStyle = cssColour("muted");
  context.globalAlpha = 0.7;
  context.setLineDash([3, 3]);
  context.beginPath();
  context.moveTo(left, y);
  context.lineTo(left + width, y);
  context.moveTo(x, top);
  context.lineTo(x, top + height);
  context.stroke();
}
