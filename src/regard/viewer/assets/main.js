// Starts the page: title, notes, keyboard, theme, address.

// A group of buttons of which one is pressed.
function press(id, value) {
  for (const button of $(id).querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.value === value);
  }
}

function chooseWith(id, choose) {
  $(id).onclick = (event) => {
    const button = event.target.closest("button");
    if (button) choose(button.value);
  };
}

function drawTop() {
  $("title").textContent = record.title;
  const tokens = shownTexts().reduce((sum, index) => sum + record.texts[index].tokens.length, 0);
  const counts = [...new Set(run().calls.map((call) => call.heads))];
  const size =
    counts.length === 1
      ? `${pluralise(run().calls.length, "layer")} × ${pluralise(counts[0], "head")}`
      : `${pluralise(run().calls.length, "layer")}, ${pluralise(run().heads.length, "head")}`;
  const words = layersAreUnique ? size : size.replace("layer", "attention call");
  $("model").textContent = [record.model, words, pluralise(tokens, "token")]
    .filter(Boolean)
    .join("  ·  ");
  $("notes").replaceChildren(...record.notes.map((note) => element("li", {}, note)));
  $("notes").hidden = record.notes.length === 0;
}

const shortcuts = {
  ArrowLeft: () => stepToken(-1),
  ArrowRight: () => stepToken(1),
  "[": () => stepHead(-1),
  "]": () => stepHead(1),
  "{": () => stepLayer(-1),
  "}": () => stepLayer(1),
  r: reverse,
  Escape: () => {
    if ($("help").open) return $("help").close();
    reader.hover = -1;
    hideTip();
    set({ token: -1 });
  },
  "?": () => $("help").showModal(),
};

function pressKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input, select, textarea")) return;
  const action = shortcuts[event.key];
  if (!action) return;
  if (event.key.startsWith("Arrow")) event.preventDefault();
  action();
}

function applyTheme() {
  document.documentElement.dataset.theme = theme();
  $("theme").textContent = theme() === "dark" ? "Light" : "Dark";
}

async function copyLink() {
  const button = $("link");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "It is in the address bar";
  }
  setTimeout(() => (button.textContent = "Copy link"), 1600);
}

// The word that the page opens with; one near the middle where none was chosen.
function firstToken() {
  if (record.start[2] >= 0) return record.start[2];
  const text = tokenText();
  const { first_query: first, queries } = currentCall();
  const middle = first + Math.floor(queries / 2);
  const places = [...Array(queries).keys()].map((i) => i + first);
  const nearest = places.sort((a, b) => Math.abs(a - middle) - Math.abs(b - middle));
  const isWord = (i) => !text.special.has(i) && /^\p{L}{4,}$/u.test(text.tokens[i]);
  return nearest.find(isWord) ?? nearest[0] ?? -1;
}

function start() {
  if (location.hash.length > 1) Object.assign(state, readAddress());
  else state.token = firstToken();
  runNumber = state.run;
  applyTheme();
  drawTop();
  startReader();
  startMap();
  startHeat();
  startTable();
  startAlign();
  startCompare();
  watch(["theme"], applyTheme);
  watch(["address"], writeAddress);
  shade();
  drawMap();
  drawHeat();
  drawAlign();
  drawStrip();
  // the table stands below the first screen
  setTimeout(drawTable);
  $("theme").onclick = () => set({ theme: theme() === "dark" ? "light" : "dark" });
  $("link").onclick = copyLink;
  $("help-open").onclick = () => $("help").showModal();
  $("help-close").onclick = () => $("help").close();
  for (const [id, by] of [["previous", -1], ["next", 1]]) $(id).onclick = () => stepHead(by);
  document.addEventListener("keydown", pressKey);
  addEventListener("hashchange", () => location.hash !== address() && set(readAddress()));
  addEventListener("resize", () => set({ size: Math.random() }));
  darkScreen.addEventListener("change", () => state.theme || listeners.forEach(({ names, draw }) =>
    names.includes("theme") && draw()));
}

if (typeof DecompressionStream === "undefined") {
  $("missing").hidden = false;
} else {
  start();
}
