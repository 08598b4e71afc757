// Which part of the map is in view, and the pointer, wheel and keys that change it.

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
