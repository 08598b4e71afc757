// Colours: one sequential ramp per theme (its lightness alone carries the value, so it is safe for
// colour-blind readers), and eight colours for kinds of heads, which are always named as well.

const RAMPS = {
  light: ["#fdfcf9", "#dbe7f2", "#a9cae3", "#6aa5d0", "#3579b5", "#1b4f8f", "#0b2a5b"],
  dark: ["#12161c", "#16304a", "#1c4f7c", "#2b78b4", "#55a3d9", "#9dcdf0", "#f2faff"],
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

// 256 colours as little-endian RGBA, ready for ImageData.
function ramp() {
  const name = theme();
  if (!ramps.has(name)) {
    const stops = RAMPS[name].map(channels);
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

function rampColour(t) {
  const c = ramp()[Math.round(255 * Math.min(1, Math.max(0, t)))];
  return `rgb(${c & 255}, ${(c >> 8) & 255}, ${(c >> 16) & 255})`;
}

// Kinds that name no pattern stay grey.
const QUIET_KINDS = new Set(["", "broad", "mixed", "other", "unknown"]);

// The kinds that there are, in the record's order, then by the alphabet; quiet ones last.
const kindOrder = (() => {
  const found = new Set(record.calls.flatMap((call) => call.kinds));
  const unlisted = [...found].filter((kind) => !record.kinds.includes(kind)).sort();
  const order = [...record.kinds, ...unlisted];
  return [...order.filter((kind) => !QUIET_KINDS.has(kind)), ...QUIET_KINDS].filter(Boolean);
})();

// A kind's colour hangs on its place in the order alone; the ninth and later are grey.
function kindColour(kind) {
  return (!QUIET_KINDS.has(kind) && KINDS[theme()][kindOrder.indexOf(kind)]) || GREYS[theme()];
}

const cssColour = (name) => getComputedStyle(document.body).getPropertyValue(`--${name}`).trim();

const linkColour = (weight, side) => cssColour(side);

// From weight to a place on the ramp; `high` is the largest value, `low` the smallest shown.
function makeScale(kind, low, high) {
  const bottom = Math.max(low, high * 1e-4);
  const range = Math.log(high / bottom) || 1;
  const log = (value) => (value < bottom ? 0 : Math.log(value / bottom) / range);
  return {
    kind,
    high,
    low: kind === "log" ? bottom : 0,
    at: kind === "log" ? log : (value) => value / high,
  };
}

// Paints numbers (rows × columns) on a canvas with one pixel for each.
function paintMatrix(values, rows, columns, scale) {
  const canvas = element("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = ramp();
  for (let i = 0; i < pixels.length; i++) {
    const t = values[i] ? scale.at(values[i]) : 0;
    pixels[i] = colours[t <= 0 ? 0 : t >= 1 ? 255 : Math.round(255 * t)];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
