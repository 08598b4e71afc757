// Colours: one sequential ramp per theme (its lightness alone carries the value, so it is safe for
// colour-blind readers), and eight colours for kinds of heads, which are always named as well.

const RAMPS = {
  light: ["#fdfcf9", "#dbe7f2", "#a9cae3", "#6aa5d0", "#3579b5", "#1b4f8f", "#0b2a5b"],
  dark: ["#12161c", "#16304a", "#1c4f7c", "#2b78b4", "#55a3d9", "#9dcdf0", "#f2faff"],
};
// Less, the same, more: told apart by lightness and by purple and green.
const DIVERGING = {
  light: ["#40004b", "#8a5aa0", "#cdb5d8", "#fdfcf9", "#b2d8ae", "#4f9d5b", "#00441b"],
  dark: ["#e9c4ff", "#b273cf", "#5c3370", "#12161c", "#245a34", "#55a868", "#c2f2c4"],
};
const KINDS = {
  light: ["#0063a6", "#d55e00", "#00a35c", "#cc3d8f", "#6b5900", "#2596d8", "#4a2fbf", "#7a1020"],
  dark: ["#56b4e9", "#ff8c42", "#1fd39a", "#f56cc0", "#f4dc4a", "#b5e2ff", "#8a76f0", "#d9503f"],
};

const GREYS = { light: "#92928c", dark: "#79828e" };

const darkScreen = matchMedia("(prefers-color-scheme: dark)");
const theme = () => state.theme || (darkScreen.matches ? "dark" : "light");

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

const ramps = new Map();

const ramp = () => coloursOf(RAMPS);
const divergingRamp = () => coloursOf(DIVERGING);

// 256 colours as little-endian RGBA, ready for ImageData.
function coloursOf(palette) {
  const name = palette[theme()].join();
  if (!ramps.has(name)) {
    const stops = palette[theme()].map(channels);
    const colours = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      const place = (i / 255) * (stops.length - 1);
      const at = Math.min(Math.floor(place), stops.length - 2);
      const mix = stops[at].map((c, k) => Math.round(c + (stops[at + 1][k] - c) * (place - at)));
      colours[i] = (255 << 24) | (mix[2] << 16) | (mix[1] << 8) | mix[0];
    }
    ramps.set(name, colours);
  }
  return ramps.get(name);
}

function rampColour(t, colours = ramp()) {
  const c = colours[Math.round(255 * Math.min(1, Math.max(0, t)))];
  return `rgb(${c & 255}, ${(c >> 8) & 255}, ${(c >> 16) & 255})`;
}

// Kinds that name no pattern stay grey.
const QUIET_KINDS = new Set(["", "broad", "mixed", "other", "unknown"]);

// The kinds that there are, in the record's order, then by the alphabet; quiet ones last.
const kindOrder = (() => {
  const found = new Set(runs.flatMap(({ calls }) => calls.flatMap((call) => call.kinds)));
  const unlisted = [...found].filter((kind) => !record.kinds.includes(kind)).sort();
  const order = [...record.kinds, ...unlisted];
  return [...order.filter((kind) => !QUIET_KINDS.has(kind)), ...QUIET_KINDS].filter(Boolean);
})();

// A kind's colour hangs on its place in the order alone; the ninth and later are grey.
function kindColour(kind) {
  return (!QUIET_KINDS.has(kind) && KINDS[theme()][kindOrder.indexOf(kind)]) || GREYS[theme()];
}

// A colour of the style sheet. To ask for one makes the browser work out all styles that changed.
const cssColours = new Map();

function cssColour(name) {
  const key = `${document.documentElement.dataset.theme} ${name}`;
  if (!cssColours.has(key)) {
    const style = getComputedStyle(document.body);
    cssColours.set(key, style.getPropertyValue(`--${name}`).trim());
  }
  return cssColours.get(key);
}

// The colour that stands for a weight of a side; of a change, for less or more.
const linkColour = (weight, side) =>
  cssColour(!run().compares ? side : weight < 0 ? "less" : "more");

// From weight to a place on the ramp; `high` is the largest value, `low` the smallest shown. A
// signed scale goes from −high to high.
function makeScale(kind, low, high, isSigned = false) {
  const bottom = Math.max(low, high * 1e-4);
  const range = Math.log(high / bottom) || 1;
  const log = (value) => (value < bottom ? 0 : Math.log(value / bottom) / range);
  const place = kind === "log" ? log : (value) => value / high;
  return {
    kind,
    high,
    isSigned,
    low: kind === "log" ? bottom : 0,
    at: isSigned ? (value) => 0.5 + (Math.sign(value) * place(Math.abs(value))) / 2 : place,
    zero: isSigned ? 0.5 : 0,
    colours: isSigned ? divergingRamp() : ramp(),
  };
}

// Paints numbers (rows × columns) on a canvas with one pixel for each.
function paintMatrix(values, rows, columns, scale) {
  const canvas = element("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const { colours, zero } = scale;
  for (let i = 0; i < pixels.length; i++) {
    const t = values[i] ? scale.at(values[i]) : zero;
    pixels[i] = colours[t <= 0 ? 0 : t >= 1 ? 255 : Math.round(255 * t)];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
