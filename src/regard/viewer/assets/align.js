// Two columns of words and lines between them: what each word on the left reads on the right. It
// shows the part of the map that is in view, in the scope of the reader.

const align = { turn: 0, links: [], hover: null };
const ROW = 21;
const MOST_WORDS = 80;
const MOST_LINKS = 2000;
const NEAR_EDGE = 12;

// The tokens in view, [query, query, key, key], or null if they are too many for lines.
function alignWindow() {
  const [r0, r1, c0, c1] = zoomWindow();
  const parts = [Math.floor(r0), Math.ceil(r1), Math.floor(c0), Math.ceil(c1)];
  return parts[1] - parts[0] > MOST_WORDS || parts[3] - parts[2] > MOST_WORDS ? null : parts;
}

// The largest weights in view: { query, key, weight }, the thinnest first.
async function loadLinks([q0, q1, k0, k1]) {
  const { first_query: first } = currentCall();
  const links = [];
  for (let query = q0; query < q1; query++) {
    const reading = await readScope(query + first, "out");
    if (!reading) continue;
    for (let key = k0; key < k1; key++) {
      const weight = reading.values[key];
      if (Math.abs(weight) >= state.link) links.push({ query, key, weight });
    }
  }
  links.sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight));
  return links.slice(-MOST_LINKS);
}

async function drawAlign() {
  const turn = ++align.turn;
  const window = alignWindow();
  $("align-box").hidden = !window;
  const { query_text: query, key_text: key } = currentCall();
  $("align-panel").hidden = !window && query === key;
  $("align-none").hidden = Boolean(window);
  $("align-value").textContent = `weights of ${state.link.toFixed(2)} and more`;
  $("link-least").value = state.link;
  $("align-title").textContent = `Links, in ${scopeName()}`;
  if (!window) return;
  const links = await loadLinks(window);
  if (turn !== align.turn) return;
  Object.assign(align, { links, window, width: $("align").parentElement.clientWidth });
  const [q0, q1, k0, k1] = window;
  align.height = ROW * Math.max(q1 - q0, k1 - k0) + 30;
  align.column = Math.min(190, align.width * 0.3);
  align.right = Math.min(align.width, 2 * align.column + 380) - align.column;
  renderAlign();
}

function renderAlign() {
  if (!align.window) return;
  drawAlignOn(prepareCanvas($("align"), align.width, align.height));
  $("align").dataset.drawn = `${state.call}.${state.head}`;
}

const alignPlace = (at) => 26 + (at + 0.5) * ROW;

function drawAlignOn(context) {
  const [q0, q1, k0, k1] = align.window;
  const call = currentCall();
  const chosen = align.hover ?? chosenInAlign();
  context.textBaseline = "middle";
  context.font = "italic 12px system-ui, sans-serif";
  context.fillStyle = cssColour("muted");
  context.textAlign = "right";
  context.fillText(`${record.texts[call.query_text].name} reads`, align.column - NEAR_EDGE, 11);
  context.textAlign = "left";
  context.fillText(record.texts[call.key_text].name, align.right + NEAR_EDGE, 11);
  for (const link of align.links) drawLink(context, link, chosen);
  context.globalAlpha = 1;
  for (let query = q0; query < q1; query++) {
    drawWord(context, call.query_text, query + call.first_query, query - q0, "out", chosen);
  }
  for (let key = k0; key < k1; key++) {
    drawWord(context, call.key_text, key, key - k0, "in", chosen);
  }
}

// The chosen token as this drawing knows it: { side, token }, or null.
const chosenInAlign = () =>
  state.token < 0 ? null : { side: state.direction, token: state.token };

const isAt = (chosen, side, token) => chosen?.side === side && chosen.token === token;

function drawLink(context, { query, key, weight }, chosen) {
  const [q0, , k0] = align.window;
  const first = currentCall().first_query;
  const touched = isAt(chosen, "out", query + first) || isAt(chosen, "in", key);
  const faded = chosen && !touched ? 0.12 : 1;
  const [y0, y1] = [alignPlace(query - q0), alignPlace(key - k0)];
  const [x0, x1] = [align.column, align.right];
  const bend = (x1 - x0) * 0.4;
  const size = Math.min(1, Math.abs(weight));
  context.globalAlpha = faded * (0.08 + 0.87 * size ** 0.7);
  context.strokeStyle = linkColour(weight, chosen && touched ? chosen.side : "out");
  context.lineWidth = 0.8 + 4.5 * size;
  context.beginPath();
  context.moveTo(x0, y0);
  context.bezierCurveTo(x0 + bend, y0, x1 - bend, y1, x1, y1);
  context.stroke();
}

function drawWord(context, textIndex, token, row, side, chosen) {
  const text = record.texts[textIndex];
  const special = text.special.has(token);
  const marked = isAt(chosen, side, token);
  context.font = `${marked ? "600 " : ""}14px ui-serif, Charter, Georgia, serif`;
  context.textAlign = side === "out" ? "right" : "left";
  context.fillStyle = cssColour(marked ? `${side}-ink` : special ? "muted" : "ink");
  const x = side === "out" ? align.column - NEAR_EDGE : align.right + NEAR_EDGE;
  const room = Math.floor(align.column / 8.5);
  context.fillText(shorten(visible(text.tokens[token]), room), x, alignPlace(row));
}

// The word under the pointer, as { side, token }.
function wordAt(event) {
  const box = $("align").getBoundingClientRect();
  const row = Math.floor((event.clientY - box.top - 26) / ROW);
  const [q0, q1, k0, k1] = align.window ?? [0, 0, 0, 0];
  const out = event.clientX - box.left < (align.column + align.right) / 2;
  const [from, to] = out ? [q0, q1] : [k0, k1];
  if (row < 0 || from + row >= to) return null;
  const token = from + row + (out ? currentCall().first_query : 0);
  return { side: out ? "out" : "in", token };
}

function hoverAlign(event) {
  const word = event.type === "pointerleave" ? null : wordAt(event);
  if (word?.side === align.hover?.side && word?.token === align.hover?.token) return;
  align.hover = word;
  renderAlign();
}

function clickAlign(event) {
  const word = wordAt(event);
  if (!word) return;
  const again = isAt(chosenInAlign(), word.side, word.token);
  set(again ? { token: -1 } : { token: word.token, direction: word.side });
}

function startAlign() {
  $("align").onpointermove = hoverAlign;
  $("align").onpointerleave = hoverAlign;
  $("align").onclick = clickAlign;
  $("link-least").oninput = (event) => set({ link: Number(event.target.value) });
  exportWith("align", () => ({
    name: `attention-links-${headLabel(currentCall(), state.head)}`,
    width: Math.ceil(align.right + align.column),
    height: align.height,
    draw: drawAlignOn,
    caption: `${visible(record.title)}, ${visible(record.model)}, ${scopeName()}.`,
  }));
  watch(["call", "head", "scope", "sinks", "zoom", "link", "size"], drawAlign);
  watch(["token", "direction", "theme"], renderAlign);
}
