// Drawings as files: the functions that draw on a canvas also draw an SVG, through the part of the
// canvas interface that they use.

const measuring = element("canvas").getContext("2d");
const escapeXml = (text) =>
  text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[\u0000-\u0008\u000b-\u001f]/g, "");
const round = (number) => Math.round(number * 100) / 100;

class SvgContext {
  constructor(width, height) {
    Object.assign(this, { width, height, parts: [], transforms: [""], path: "", dash: "" });
    Object.assign(this, { fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, globalAlpha: 1 });
    Object.assign(this, { font: "10px sans-serif", textAlign: "left", textBaseline: "alphabetic" });
    this.imageSmoothingEnabled = true;
  }

  add(tag, attributes, content = "") {
    const transform = this.transforms.at(-1).trim();
    const all = { ...attributes, ...(transform && { transform }) };
    if (this.globalAlpha < 1) all.opacity = round(this.globalAlpha);
    const text = Object.entries(all).map(([name, value]) => ` ${name}="${escapeXml(`${value}`)}"`);
    this.parts.push(`<${tag}${text.join("")}>${content}</${tag}>`);
  }

  save() { this.transforms.push(this.transforms.at(-1)); }
  restore() { this.transforms.pop(); }
  translate(x, y) { this.transforms.push(`${this.transforms.pop()} translate(${round(x)} ${round(y)})`); }
  rotate(angle) {
    this.transforms.push(`${this.transforms.pop()} rotate(${round((angle * 180) / Math.PI)})`);
  }

  rectangle(x, y, width, height, style) {
    const place = { x: round(x), y: round(y), width: round(width), height: round(height) };
    this.add("rect", { ...place, ...style });
  }
  fillRect(...box) { this.rectangle(...box, { fill: this.fillStyle }); }
  strokeRect(...box) { this.rectangle(...box, { fill: "none", ...this.stroking() }); }

  stroking() {
    const dash = this.dash && { "stroke-dasharray": this.dash };
    return { stroke: this.strokeStyle, "stroke-width": round(this.lineWidth), ...dash };
  }
  setLineDash(dash) { this.dash = dash.join(" "); }
  beginPath() { this.path = ""; }
  moveTo(...at) { this.path += `M${at.map(round).join(" ")}`; }
  lineTo(...at) { this.path += `L${at.map(round).join(" ")}`; }
  bezierCurveTo(...at) { this.path += `C${at.map(round).join(" ")}`; }
  stroke() { this.add("path", { d: this.path, fill: "none", ...this.stroking() }); }

  measureText(text) {
    measuring.font = this.font;
    return measuring.measureText(text);
  }

  fillText(text, x, y) {
    const anchor = { left: "start", center: "middle", right: "end" }[this.textAlign];
    const baseline = this.textBaseline === "middle" ? "central" : "auto";
    const style = `font:${this.font};white-space:pre`;
    const place = { x: round(x), y: round(y), "text-anchor": anchor, "dominant-baseline": baseline };
    this.add("text", { ...place, fill: this.fillStyle, style }, escapeXml(`${text}`));
  }

  // With nine arguments a part of the picture, as on a canvas.
  drawImage(picture, ...at) {
    const [x, y, width, height] = at.slice(-4);
    const part = at.length > 4 ? at.slice(0, 4) : [0, 0, picture.width, picture.height];
    const rendering = this.imageSmoothingEnabled ? "auto" : "pixelated";
    const image =
      `<image width="${picture.width}" height="${picture.height}" href="${picture.toDataURL()}" ` +
      `style="image-rendering:${rendering}"/>`;
    const place = { x: round(x), y: round(y), width: round(width), height: round(height) };
    this.add("svg", { ...place, viewBox: part.join(" "), preserveAspectRatio: "none" }, image);
  }

  toString() {
    const size = `width="${this.width}" height="${this.height}"`;
    const box = `viewBox="0 0 ${this.width} ${this.height}"`;
    const space = 'xmlns="http://www.w3.org/2000/svg"';
    return `<svg ${space} ${size} ${box}>${this.parts.join("\n")}</svg>\n`;
  }
}

const CAVEAT = "Attention shows what was read, not why.";

// What `draw` draws, on the panel's colour, with lines below it that say what it is.
function drawWithCaption(context, { width, height, draw, caption }) {
  context.fillStyle = cssColour("panel");
  context.fillRect(0, 0, width, height + 44);
  draw(context);
  context.font = "12px system-ui, sans-serif";
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.fillStyle = cssColour("muted");
  context.fillText(shorten(caption, Math.floor(width / 6)), 8, height + 18);
  context.fillText(CAVEAT, 8, height + 35);
}

// drawing: { name, width, height, draw, caption }, sizes in CSS pixels.
function downloadPng(drawing) {
  const canvas = element("canvas");
  const context = prepareCanvas(canvas, drawing.width, drawing.height + 44, 2);
  drawWithCaption(context, drawing);
  canvas.toBlob((blob) => download(`${drawing.name}.png`, blob), "image/png");
}

function downloadSvg(drawing) {
  const context = new SvgContext(drawing.width, drawing.height + 44);
  drawWithCaption(context, drawing);
  download(`${drawing.name}.svg`, new Blob([`${context}`], { type: "image/svg+xml" }));
}

// Gives a panel's PNG and SVG buttons their drawing.
function exportWith(id, drawing) {
  $(`${id}-png`).onclick = () => downloadPng(drawing());
  $(`${id}-svg`).onclick = () => downloadSvg(drawing());
}
