// The model map: one small picture per head, a row per attention call.

const heads = record.calls.flatMap((call) =>
  call.kinds.map((kind, head) => ({
    call,
    head,
    kind,
    scores: Object.fromEntries(scoreNames.map((name) => [name, call.scores[name]?.[head] ?? null])),
  })),
);
const scoreRanges = Object.fromEntries(
  scoreNames.map((name) => {
    const values = heads.map((h) => h.scores[name]).filter((value) => value !== null);
    return [name, values.length ? [Math.min(...values), Math.max(...values)] : [0, 1]];
  }),
);

// Where a head's score lies between the lowest and the highest of all heads, from 0 to 1.
function scorePlace(entry, name) {
  const [low, high] = scoreRanges[name];
  const value = entry.scores[name];
  return value === null || high === low ? 0 : (value - low) / (high - low);
}

// How long the bar beside a score is: a share of 1 as it stands, anything else by the highest head.
function scoreBar(entry, name) {
  const [low, high] = scoreRanges[name];
  const value = entry.scores[name] ?? 0;
  return low >= 0 && high <= 1 ? value : Math.max(0, value) / (high || 1);
}

function passesFilter(entry) {
  if (state.kind && entry.kind !== state.kind) return false;
  if (!state.filter) return true;
  if (entry.scores[state.filter] === null) return false;
  const place = scorePlace(entry, state.filter);
  return state.side === "least" ? place >= state.bound : place <= state.bound;
}

const map = { tiles: [], pictures: new Map(), size: 0 };

// Where each head's tile stands: in the model's order, or in the order of a score.
function layoutMap(width) {
  const columns = Math.max(...record.calls.map((call) => call.heads));
  const margin = state.sort ? 2 : layersAreUnique ? 30 : 96;
  const gap = columns > 20 ? 2 : 4;
  const size = Math.max(6, Math.min(96, Math.floor((width - margin) / columns) - gap));
  const step = size + gap;
  const order = state.sort
    ? [...heads].sort((a, b) => (b.scores[state.sort] ?? -1e9) - (a.scores[state.sort] ?? -1e9))
    : heads;
  const top = state.sort ? 2 : 16;
  map.tiles = order.map((entry, n) => {
    const column = state.sort ? n % columns : entry.head;
    const row = state.sort ? Math.floor(n / columns) : entry.call.index;
    return { entry, x: margin + column * step, y: top + row * step };
  });
  const rows = state.sort ? Math.ceil(heads.length / columns) : record.calls.length;
  Object.assign(map, { size, step, columns, margin, top, width, height: top + rows * step });
}

async function drawMap() {
  const canvas = $("map");
  const width = canvas.parentElement.clientWidth;
  layoutMap(width);
  for (const call of record.calls) await preparePictures(call);
  drawMapOn(prepareCanvas(canvas, width, map.height));
  canvas.dataset.drawn = `${state.call}.${state.head}`;
}

function drawMapOn(context) {
  if (!state.sort) drawMapLabels(context);
  map.tiles.forEach((tile) => drawTile(context, tile));
}

function drawMapLabels(context) {
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = cssColour("muted");
  context.textBaseline = "middle";
  context.textAlign = "right";
  const every = Math.ceil(13 / map.step);
  record.calls.forEach((call, row) => {
    const y = map.top + row * map.step + map.size / 2;
    const label = layersAreUnique ? callLabel(call) : nameTail(call.name, 15);
    if (row % every === 0) context.fillText(label, map.margin - 7, y);
  });
  context.textAlign = "center";
  const thin = Math.ceil(20 / map.step);
  for (let head = 0; head < map.columns; head += thin) {
    context.fillText(columnLabel(head), map.margin + head * map.step + map.size / 2, 7);
  }
}

// The heads' numbers, where all calls agree on them.
function columnLabel(head) {
  const numbers = new Set(record.calls.map((call) => call.numbers[head]).filter((n) => n >= 0));
  return numbers.size === 1 ? [...numbers][0] : "";
}

// The last parts of a module's dotted name, as many as fit.
function nameTail(name, length) {
  const parts = name.split(".");
  while (parts.length > 1 && parts.join(".").length > length) parts.shift();
  return shorten(parts.join("."), length);
}

// Thumbnails of a call's heads, each on its own scale over three decades.
async function preparePictures(call) {
  const key = `${call.index} ${theme()}`;
  if (map.pictures.has(key)) return;
  const { data, shape, table } = await load(call, "thumbnail");
  const [count, rows, columns] = shape;
  const pictures = [];
  for (let head = 0; head < count; head++) {
    const codes = data.subarray(head * rows * columns, (head + 1) * rows * columns);
    const values = Float32Array.from(codes, (c) => table[c]);
    const high = values.reduce((a, b) => Math.max(a, b), 1e-6);
    pictures.push(paintMatrix(values, rows, columns, makeScale("log", high * 5e-3, high)));
  }
  map.pictures.set(key, pictures);
}

function drawTile(context, { entry, x, y }) {
  const { size } = map;
  const chosen = entry.call.index === state.call && entry.head === state.head;
  context.globalAlpha = passesFilter(entry) ? 1 : 0.13;
  if (state.show) {
    context.fillStyle = rampColour(0.06 + 0.94 * scorePlace(entry, state.show));
    context.fillRect(x, y, size, size);
  } else {
    const picture = map.pictures.get(`${entry.call.index} ${theme()}`)[entry.head];
    context.imageSmoothingEnabled = picture.width > size;
    context.drawImage(picture, x, y, size, size);
  }
  context.fillStyle = kindColour(entry.kind);
  const bar = size < 14 ? 2 : 3;
  context.fillRect(x, y + size - bar, size, bar);
  context.globalAlpha = 1;
  if (chosen) {
    context.strokeStyle = cssColour("ink");
    context.lineWidth = 2;
    context.strokeRect(x - 1, y - 1, size + 2, size + 2);
  }
}

function tileAt(event) {
  const box = $("map").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  return map.tiles.find(
    (t) => x >= t.x && x < t.x + map.step && y >= t.y && y < t.y + map.step,
  );
}

function hoverMap(event) {
  const tile = tileAt(event);
  if (!tile) return hideTip();
  const { entry } = tile;
  const lines = [element("strong", {}, `Head ${headLabel(entry.call, entry.head)}`)];
  if (entry.kind) lines.push(element("div", {}, entry.kind));
  if (!layersAreUnique) lines.push(element("div", { className: "faint" }, entry.call.name));
  const shown = [...new Set([state.show, state.sort, state.filter].filter(Boolean))];
  for (const name of shown) {
    lines.push(element("div", {}, `${name} ${formatScore(entry.scores[name])}`));
  }
  const picture = map.pictures.get(`${entry.call.index} ${theme()}`)?.[entry.head];
  if (picture) {
    const copy = element("canvas", { width: 112, height: 112 });
    const context = copy.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, 112, 112);
    lines.push(copy);
  }
  showTip(event, ...lines);
}

function keyOnMap(event) {
  const at = map.tiles.findIndex(
    ({ entry }) => entry.call.index === state.call && entry.head === state.head,
  );
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -map.columns, ArrowDown: map.columns };
  if (!(event.key in by)) return;
  event.preventDefault();
  event.stopPropagation();
  const tile = map.tiles[at + by[event.key]];
  if (tile) chooseHead(tile.entry.call.index, tile.entry.head);
}

// One button per kind: shows only its heads; again, all.
function drawKinds() {
  $("kinds").replaceChildren(
    ...kindOrder.flatMap((kind) => {
      const count = heads.filter((entry) => entry.kind === kind).length;
      if (!count) return [];
      const dot = element("i");
      dot.style.background = kindColour(kind);
      const chip = element("button", { className: "chip", type: "button" });
      chip.append(dot, `${kind} ${count}`);
      chip.title = record.glossary[kind] || `Show only “${kind}” heads`;
      chip.setAttribute("aria-pressed", state.kind === kind);
      chip.onclick = () => set({ kind: state.kind === kind ? "" : kind });
      return chip;
    }),
  );
}

function drawMapControls() {
  $("show").value = state.show;
  $("sort").value = state.sort;
  $("filter").value = state.filter;
  $("bound").value = state.bound;
  $("side").textContent = state.side === "least" ? "≥" : "≤";
  $("bound-box").hidden = !state.filter;
  if (!state.filter) return;
  const [low, high] = scoreRanges[state.filter];
  $("bound-value").textContent = formatScore(low + state.bound * (high - low));
  const count = heads.filter(passesFilter).length;
  $("bound-count").textContent = `${count} of ${pluralise(heads.length, "head")}`;
}

// The chosen head in words.
function drawCard() {
  const call = currentCall();
  const entry = heads.find((h) => h.call === call && h.head === state.head);
  const dot = element("i", { className: "dot" });
  dot.style.background = kindColour(entry.kind);
  $("card-title").textContent = `Head ${headLabel(call, state.head)}`;
  $("card-name").textContent = call.name;
  $("card-kind").replaceChildren(...(entry.kind ? [dot, entry.kind] : []));
  $("card-meaning").textContent = record.glossary[entry.kind] || "";
  $("card-scores").replaceChildren(
    ...scoreNames.flatMap((name) => {
      const bar = element("div", { className: "bar" }, element("i"));
      bar.firstChild.style.width = `${100 * scoreBar(entry, name)}%`;
      const label = element("dt", { title: record.glossary[name] || name }, name);
      const number = element("span", { className: "number" }, formatScore(entry.scores[name]));
      return [label, element("dd", {}, bar, number)];
    }),
  );
}

const mapCaption = () =>
  `${visible(record.title)}, ${visible(record.model)}. ` +
  (state.show ? `Colour: ${state.show}.` : "Each picture has its own scale.");

function startMap() {
  for (const name of scoreNames) {
    $("show").append(element("option", { value: name }, name));
    $("sort").append(element("option", { value: name }, name));
    $("filter").append(element("option", { value: name }, name));
  }
  $("show").onchange = (event) => set({ show: event.target.value });
  $("sort").onchange = (event) => set({ sort: event.target.value });
  $("filter").onchange = (event) => set({ filter: event.target.value, bound: 0, side: "least" });
  $("bound").oninput = (event) => set({ bound: Number(event.target.value) });
  $("side").onclick = () => set({ side: state.side === "least" ? "most" : "least" });
  $("map").onclick = (event) => {
    const tile = tileAt(event);
    if (tile) chooseHead(tile.entry.call.index, tile.entry.head);
  };
  $("map").onpointermove = hoverMap;
  $("map").onpointerleave = hideTip;
  $("map").onkeydown = keyOnMap;
  exportWith("map", () => ({
    name: "attention-map",
    width: map.width,
    height: map.height,
    draw: drawMapOn,
    caption: mapCaption(),
  }));
  $("enlarge").onclick = () => {
    const large = document.body.classList.toggle("large-map");
    $("enlarge").setAttribute("aria-pressed", large);
    set({ size: Math.random() });
  };
  const filters = ["kind", "filter", "bound", "side"];
  watch(["call", "head", "show", "sort", "theme", "size", ...filters], drawMap);
  watch(["kind", "theme"], drawKinds);
  watch(["show", "sort", ...filters], drawMapControls);
  watch(["call", "head", "theme"], drawCard);
  drawKinds();
  drawMapControls();
  drawCard();
}
