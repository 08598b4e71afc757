// The text itself: choose a token, and what it reads (or who reads it) is shaded.

const reader = { tokens: [], shaded: [], hover: -1, turn: 0, key: "" };
const LONG_TEXT = 600;
const LIST_LENGTH = 12;

const shownTexts = () => {
  const { query_text: query, key_text: key } = currentCall();
  return query === key ? [query] : [query, key];
};

// Lays the texts out as words; again only when a call reads other texts.
function layoutTexts() {
  const texts = shownTexts();
  const key = texts.join();
  if (reader.key === key) return;
  reader.key = key;
  reader.tokens = [];
  const pictured = texts.some((index) => record.texts[index].picture);
  $("text-title").textContent = pictured ? "The picture" : "The text";
  $("text").replaceChildren(
    ...texts.flatMap((index) => {
      const title = texts.length > 1 ? [element("h3", {}, record.texts[index].name)] : [];
      return [...title, layoutText(index)];
    }),
  );
}

function layoutText(index) {
  const text = record.texts[index];
  const nodes = [];
  const box = element("div", { className: "passage", role: "presentation" });
  box.dir = readsRightToLeft(text) ? "rtl" : "ltr";
  box.classList.toggle("long", text.tokens.length >= LONG_TEXT);
  const newParagraph = () => element("p", { role: "presentation" });
  let paragraph = newParagraph();
  text.tokens.forEach((token, i) => {
    if (isPatch(text, i)) {
      if (i === text.picture.first) box.append(paragraph, layoutPicture(index, nodes));
      if (i === text.picture.end - 1) paragraph = newParagraph();
      return;
    }
    if (i > 0 && !text.glued.has(i)) paragraph.append(" ");
    nodes.push(layoutToken(text, index, i));
    paragraph.append(nodes[i]);
    if (endsParagraph(text, i, paragraph.children.length)) {
      box.append(paragraph);
      paragraph = newParagraph();
    }
  });
  box.append(paragraph);
  reader.tokens[index] = nodes;
  return box;
}

function layoutToken(text, index, i) {
  const token = text.tokens[i];
  const shown = text.glued.has(i) && /^##./.test(token) ? token.slice(2) : token;
  const node = element("bdi", { className: "token", id: `t${index}-${i}`, role: "option" });
  node.textContent = visible(shown);
  node.dataset.text = index;
  node.dataset.token = i;
  if (text.special.has(i)) node.classList.add("special");
  return node;
}

// Long texts are cut into paragraphs, so that the browser lays out only those in view.
function endsParagraph(text, i, length) {
  if (text.tokens[i].includes("\n")) return true;
  if (text.tokens.length < LONG_TEXT) return false;
  return length >= 400 || (length >= 120 && /[.!?。]$/.test(text.tokens[i]));
}

function readsRightToLeft(text) {
  const sample = text.tokens.slice(0, 400).join("");
  const rtl = (sample.match(/[\u0590-\u08ff\ufb1d-\ufefc]/g) || []).length;
  return rtl > (sample.match(/\p{L}/gu) || []).length / 2;
}

const activeToken = () => (state.token >= 0 ? state.token : reader.hover);
const activeTextIndex = () =>
  state.direction === "out" ? currentCall().query_text : currentCall().key_text;
const otherTextIndex = () =>
  state.direction === "out" ? currentCall().key_text : currentCall().query_text;

async function shade() {
  const turn = ++reader.turn;
  layoutTexts();
  const token = activeToken();
  const nodes = reader.tokens[activeTextIndex()];
  const reading = token >= 0 && token < nodes.length ? await readScope(token, state.direction) : null;
  if (turn !== reader.turn) return;
  clearShades();
  reader.reading = reading;
  if (nodes[token]) markChosen(nodes[token]);
  if (state.token >= 0 && nodes[token]) reveal(nodes[token]);
  if (reading) shadeNodes(reading);
  describe(token, reading);
  $("text").dataset.drawn = `${state.call}.${state.head} ${token} ${state.direction}`;
}

// Scrolls the text, not the page. Twice, because what was out of view had only a guessed height.
function reveal(node) {
  for (let turn = 0; turn < 2; turn++) {
    const frame = $("text").getBoundingClientRect();
    const box = node.getBoundingClientRect();
    if (box.top >= frame.top && box.bottom <= frame.bottom) return;
    $("text").scrollTop += (box.top + box.bottom - frame.top - frame.bottom) / 2;
  }
}

function clearShades() {
  fadePictures(-1);
  for (const node of reader.shaded) {
    node.style.background = "";
    node.classList.remove("chosen");
    node.removeAttribute("aria-selected");
  }
  reader.shaded = [];
}

function markChosen(node) {
  node.classList.add("chosen");
  node.setAttribute("aria-selected", "true");
  $("text").setAttribute("aria-activedescendant", node.id);
  reader.shaded.push(node);
}

function shadeNodes({ values }) {
  const nodes = reader.tokens[otherTextIndex()];
  const high = largestOf(values);
  if (!high) return;
  fadePictures(otherTextIndex());
  values.forEach((value, i) => {
    const strength = (Math.abs(value) / high) ** 0.7;
    if (strength < 0.03) return;
    const colour = channels(linkColour(value, state.direction)).join(", ");
    const most = nodes[i].classList.contains("patch") ? 0.85 : 0.56;
    nodes[i].style.background = `rgba(${colour}, ${(most * strength).toFixed(3)})`;
    reader.shaded.push(nodes[i]);
  });
}

const scopeName = () =>
  ({
    head: `head ${headLabel(currentCall(), state.head)}`,
    layer: `layer ${callLabel(currentCall())}, mean of ${pluralise(currentCall().heads, "head")}`,
    model: "all heads, mean",
    rollout: "the rollout through all layers",
  })[scope()];

// The sentence and the list beside the text.
function describe(token, reading) {
  const list = $("top");
  if (token < 0) {
    $("sentence").textContent = "Point at a word, or click to keep it.";
    $("coverage").textContent = "";
    return list.replaceChildren();
  }
  const word = visible(tokenText().tokens[token] ?? "");
  const name = element("bdi", { className: state.direction }, word);
  const verb = state.direction === "out" ? " reads" : " is read by";
  const changes = run().compares ? ", more and less than before" : "";
  $("sentence").replaceChildren(name, `${verb}${changes}, in ${scopeName()}:`);
  if (!reading) {
    $("coverage").textContent = "This token takes no part in this call.";
    return list.replaceChildren();
  }
  const { values, error } = reading;
  const some = [...values.keys()].filter((i) => values[i] !== 0);
  const size = (i) => Math.abs(values[i]);
  const best = some.sort((a, b) => size(b) - size(a)).slice(0, LIST_LENGTH);
  list.replaceChildren(...best.map((i) => listItem(i, values[i], values[best[0]], error)));
  $("coverage").textContent = coverage(reading);
  announceReading(token, best, values, error);
}

function listItem(i, value, high, error) {
  const text = record.texts[otherTextIndex()];
  const word = element("bdi", { className: "word" }, shorten(visible(text.tokens[i]), 24));
  if (isPatch(text, i)) word.prepend(patchImage(text, i));
  const place = element("span", { className: "place" }, `${i}`);
  const bar = element("span", { className: "bar" }, element("i"));
  bar.firstChild.style.width = `${Math.abs((100 * value) / high)}%`;
  bar.firstChild.style.background = linkColour(value, state.direction);
  const shown = signed(formatWeight(value, error), value);
  const number = element("span", { className: "number" }, shown);
  const button = element("button", { type: "button" }, place, word, bar, number);
  button.title = "Go to this token";
  button.onclick = () => goTo(i);
  return element("li", {}, button);
}

// Moves the choice to a token of the other side, where that side can be chosen.
function goTo(i) {
  if (activeTextIndex() === otherTextIndex()) set({ token: i });
  else set({ token: i, direction: state.direction === "out" ? "in" : "out" });
}

// How much of the attention the shades stand for: never more than is known.
function coverage({ values, total, whole, floor, k, error, compares }) {
  if (compares) {
    const gained = values.reduce((sum, value) => sum + Math.max(0, value), 0);
    const lost = values.reduce((sum, value) => sum - Math.min(0, value), 0);
    return `${formatScore(gained)} more, ${formatScore(lost)} less, in what is stored.`;
  }
  const sum = values.reduce((a, b) => a + b, 0);
  const hidden = state.sinks === "hide" ? " Sinks are hidden and the rest scaled up." : "";
  if (state.direction === "out" && total === 0) return "It reads nothing here but sinks.";
  const top = k > 1 ? `top ${k} keys` : "top key";
  const stored = whole ? `weights of ${formatWeight(floor, 1)} and more` : `each query’s ${top}`;
  if (Number.isNaN(total)) {
    return `Sum ${formatScore(sum)}, over ${stored}.${hidden}`;
  }
  const exact = error > 0.02 ? ` The page holds weights to within ${Math.round(100 * error)} %.` : "";
  const share = total > 0 ? Math.min(1, sum / total) : 0;
  const out = state.direction === "out";
  const what = out ? "its attention" : `the ${formatScore(total)} it receives`;
  if (whole && share > 0.985) return `Shown: all of ${what}.${exact}${hidden}`;
  const rest = "the rest is spread thinner";
  return `Shown: ${percent(share)} of ${what} (${stored}); ${rest}.${exact}${hidden}`;
}

function announceReading(token, best, values, error) {
  if (state.token < 0) return;
  const tokens = record.texts[otherTextIndex()].tokens;
  const parts = best.slice(0, 3).map((i) => `${tokens[i]} ${formatWeight(values[i], error)}`);
  const verb = state.direction === "out" ? "reads" : "is read by";
  $("live").textContent = `${tokenText().tokens[token]} ${verb} ${parts.join(", ")}`;
}

function tokenOf(event) {
  const node = event.target.closest(".token");
  return node && { text: Number(node.dataset.text), token: Number(node.dataset.token) };
}

function clickText(event) {
  const at = tokenOf(event);
  if (!at) return;
  if (at.text !== activeTextIndex()) {
    return set({ token: at.token, direction: state.direction === "out" ? "in" : "out" });
  }
  set({ token: at.token === state.token ? -1 : at.token });
}

// Pointing previews a token, or tells the weight between the chosen one and this one.
function hoverText(event) {
  const at = tokenOf(event);
  if (state.token < 0) {
    const token = at && at.text === activeTextIndex() && isQuick() ? at.token : -1;
    if (token !== reader.hover) {
      reader.hover = token;
      shade();
    }
    return;
  }
  if (!at || at.text !== otherTextIndex() || !reader.reading) return hideTip();
  const chosen = visible(tokenText().tokens[state.token]);
  const pointed = visible(record.texts[at.text].tokens[at.token]);
  const pair = state.direction === "out" ? [chosen, pointed] : [pointed, chosen];
  const value = reader.reading.values[at.token];
  const text = value ? formatWeight(value, reader.reading.error) : "not stored: small, or none";
  showTip(
    event,
    element("div", {}, element("bdi", {}, pair[0]), " → ", element("bdi", {}, pair[1])),
    element("strong", {}, text),
  );
}

// Whether reading one token is fast enough to do it while the pointer moves.
function isQuick() {
  const { call } = scopeHeads()[0];
  const each = state.direction === "out" ? 64 : call.queries * (isWhole(call) ? 1 : 8);
  return scopeHeads().length * each < 4e6;
}

// The next token on the line above or below, as the text stands on the screen.
function tokenOnLine(by) {
  const nodes = reader.tokens[activeTextIndex()];
  const from = nodes[state.token].getBoundingClientRect();
  const middle = (from.left + from.right) / 2;
  let found = state.token;
  let line = null;
  let distance = Infinity;
  for (let i = state.token + by; nodes[i]; i += by) {
    const box = nodes[i].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 4) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > 4) break;
    const off = Math.abs((box.left + box.right) / 2 - middle);
    if (off < distance) [found, distance] = [i, off];
  }
  return found;
}

function stepToken(by) {
  const count = tokenText().tokens.length;
  const from = state.token >= 0 ? state.token : reader.hover >= 0 ? reader.hover : -by;
  set({ token: Math.min(count - 1, Math.max(0, from + by)) });
}

function keyOnText(event) {
  if (state.token < 0 || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
  event.preventDefault();
  set({ token: tokenOnLine(event.key === "ArrowUp" ? -1 : 1) });
}

function drawReaderControls() {
  press("scope", scope());
  $("scope").querySelector("[value=rollout]").hidden = !rollouts().length;
  press("direction", state.direction);
  document.querySelectorAll(".sinks").forEach((box) => (box.checked = state.sinks === "hide"));
}

function startReader() {
  const text = $("text");
  text.onclick = clickText;
  text.onpointermove = hoverText;
  text.onpointerleave = () => {
    hideTip();
    if (reader.hover < 0) return;
    reader.hover = -1;
    shade();
  };
  text.onkeydown = keyOnText;
  chooseWith("scope", (scope) => set({ scope }));
  chooseWith("direction", (direction) => direction !== state.direction && reverse());
  document.querySelectorAll(".sinks").forEach((box) => {
    box.onchange = () => set({ sinks: box.checked ? "hide" : "show" });
  });
  watch(["call", "head", "token", "direction", "scope", "sinks", "theme"], shade);
  watch(["call", "direction", "scope", "sinks"], drawReaderControls);
  drawReaderControls();
  layoutTexts();
}
