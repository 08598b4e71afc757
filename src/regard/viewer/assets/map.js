// The model map: one small picture per head, a row per attention call.

// Where a head's score lies between the lowest and the highest of all heads, from 0 to 1.
function scorePlace(entry, name) {
  const [low, high] = run().ranges[name];
  const value = entry.scores[name];
  return value === null || high === low ? 0 : (value - low) / (high - low);
}

// How long the bar beside a score is: a share of 1 as it stands, anything else by the highest head.
function scoreBar(entry, name) {
  const [low, high] = run().ranges[name];
  const value = Math.abs(entry.scores[name] ?? 0);
  return low >= 0 && high <= 1 ? value : value / (Math.max(high, -low) || 1);
}

function passesFilter(entry) {
  if (state.kind && entry.kind !== state.kind) return false;
  if (!state.filter) return true;
  if (entry.scores[state.filter] === null) return false;
  const place = scorePlace(entry, state.filter);
  return state.side === "least" ? place >= state.bound : place <= state.bound;
}

const map = { tiles: [], pictures: new Map(), size: 0 };

const scoreOrLeast = (entry, name) => entry.scores[name] ?? -1e9;

// Where each head's tile stands: in the model's order, or in the order of a score.
function layoutMap(width) {
  const columns = Math.max(...run().calls.map((call) => call.heads));
  const margin = state.sort ? 2 : layersAreUnique ? 30 : 96;
  const gap = columns > 20 ? 2 : 4;
  const size = Math.max(6, Math.min(96, Math.floor((width - margin) / columns) - gap));
  const step = size + gap;
  const order = state.sort
    ? [...run().heads].sort((a, b) => scoreOrLeast(b, state.sort) - scoreOrLeast(a, state.sort))
    : run().heads;
  const top = state.sort ? 2 : 16;
  map.tiles = order.map((entry, n) => {
    const column = state.sort ? n % columns : entry.head;
    const row = state.sort ? Math.floor(n / columns) : entry.call.index;
    return { entry, x: margin + column * step, y: top + row * step };
  });
  const rows = state.sort ? Math.ceil(run().heads.length / columns) : run().calls.length;
  Object.assign(map, { size, step, columns, margin, top, width, height: top + rows * step });
}

// Draws all heads, on a canvas that is kept: choosing another one only copies it.
async function drawMap() {
  layoutMap($("map").parentElement.clientWidth);
  for (const call of run().calls) await preparePictures(call);
  map.tilesDrawn = element("canvas");
  drawTiles(prepareCanvas(map.tilesDrawn, map.width, map.height));
  drawMapChoice();
}

function drawMapChoice() {
  if (!map.tilesDrawn?.width) return; // not yet, or in a frame that is not laid out yet
  const canvas = $("map");
  const context = prepareCanvas(canvas, map.width, map.height);
  context.drawImage(map.tilesDrawn, 0, 0, map.width, map.height);
  drawChosenTile(context);
  canvas.dataset.drawn = `${state.call}.${state.head}`;
}

function drawTiles(context) {
  if (!state.sort) drawMapLabels(context);
  map.tiles.forEach((tile) => drawTile(context, tile));
}

function drawMapOn(context) {
  drawTiles(context);
  drawChosenTile(context);
}

function drawChosenTile(context) {
  const isChosen = ({ entry }) => entry.call.index === state.call && entry.head === state.head;
  const { x, y } = map.tiles.find(isChosen);
  context.strokeStyle = cssColour("ink");
  context.lineWidth = 2;
  context.strokeRect(x - 1, y - 1, map.size + 2, map.size + 2);
}

function drawMapLabels(context) {
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = cssColour("muted");
  context.textBaseline = "middle";
  context.textAlign = "right";
  const every = Math.ceil(13 / map.step);
  run().calls.forEach((call, row) => {
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
  const numbers = new Set(run().calls.map((call) => call.numbers[head]).filter((n) => n >= 0));
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
  const key = pictureKey(call);
  if (map.pictures.has(key)) return;
  const thumbnails = await loadThumbnails(call);
  map.pictures.set(
    key,
    thumbnails.map(({ values, rows, columns }) => {
      const high = Math.max(1e-6, largestOf(values));
      // changes are all on one scale, so that heads that stayed the same are blank
      const all = call.queries / rows; // what the weights in one row of cells sum to
      const scale = call.pair
        ? makeScale("log", 0.01 * all, 0.5 * all, true)
        : makeScale("log", high * 5e-3, high);
      return paintMatrix(values, rows, columns, scale);
    }),
  );
}

const pictureKey = (call) => `${runNumber} ${call.index} ${theme()}`;

// The small maps of a call's heads as numbers: [{ values, rows, columns }].
async function loadThumbnails(call) {
  if (call.pair) {
    const [before, after] = await Promise.all(call.pair.map(loadThumbnails));
    return before.map((each, head) => ({
      ...each,
      values: difference([each.values, after[head].values]),
    }));
  }
  const { data, shape, table } = await load(call, "thumbnail");
  const [count, rows, columns] = shape;
  const size = rows * columns;
  return Array.from({ length: count }, (_, head) => ({
    values: Float32Array.from(data.subarray(head * size, (head + 1) * size), (c) => table[c]),
    rows,
    columns,
  }));
}

function drawTile(context, { entry, x, y }) {
  const { size } = map;
  context.globalAlpha = passesFilter(entry) ? 1 : 0.13;
  if (state.show) {
    context.fillStyle = rampColour(0.06 + 0.94 * scorePlace(entry, state.show));
    context.fillRect(x, y, size, size);
  } else {
    const picture = map.pictures.get(pictureKey(entry.call))[entry.head];
    context.imageSmoothingEnabled = picture.width > size;
    context.drawImage(picture, x, y, size, size);
  }
  context.fillStyle = kindColour(entry.kind);
  const bar = size < 14 ? 2 : 3;
  context.fillRect(x, y + size - bar, size, bar);
  context.globalAlpha = 1;
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
    const value = entry.scores[name];
    lines.push(element("div", {}, `${name} ${signed(formatScore(value), value)}`));
  }
  const picture = map.pictures.get(pictureKey(entry.call))?.[entry.head];
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
      const count = run().heads.filter((entry) => entry.kind === kind).length;
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
  const [low, high] = run().ranges[state.filter];
  $("bound-value").textContent = formatScore(low + state.bound * (high - low));
  const count = run().heads.filter(passesFilter).length;
  $("bound-count").textContent = `${count} of ${pluralise(run().heads.length, "head")}`;
}

// The chosen head in words.
function drawCard() {
  const call = currentCall();
  const entry = run().heads.find((h) => h.call === call && h.head === state.head);
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
      const value = entry.scores[name];
      const shown = name === "change" ? formatScore(value) : signed(formatScore(value), value);
      const number = element("span", { className: "number" }, shown);
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
  watch(["run", "show", "sort", "theme", "size", ...filters], drawMap);
  watch(["call", "head"], drawMapChoice);
  watch(["kind", "theme"], drawKinds);
  watch(["show", "sort", ...filters], drawMapControls);
  watch(["call", "head", "theme"], drawCard);
  drawKinds();
  drawMapControls();
  drawCard();
}
