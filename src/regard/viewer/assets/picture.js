// A text that is a picture: its patches are tokens like words, laid over the image.

function layoutPicture(index, nodes) {
  const text = record.texts[index];
  const { uri, rows, columns, first, end } = text.picture;
  const image = element("img", { src: uri, alt: `${text.name}, cut into ${rows} × ${columns}` });
  const grid = element("div", { className: "patches", role: "presentation" });
  grid.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
  for (let i = first; i < end; i++) {
    nodes[i] = element("span", { className: "token patch", id: `t${index}-${i}`, role: "option" });
    nodes[i].setAttribute("aria-label", text.tokens[i]);
    nodes[i].dataset.text = index;
    nodes[i].dataset.token = i;
    grid.append(nodes[i]);
  }
  return element("div", { className: "picture", role: "presentation" }, image, grid);
}

const isPatch = (text, i) => text.picture && i >= text.picture.first && i < text.picture.end;

// The patch itself, small, to stand beside its name.
function patchImage(text, i) {
  const { uri, rows, columns, first } = text.picture;
  const [row, column] = [Math.floor((i - first) / columns), (i - first) % columns];
  const node = element("span", { className: "patch-image" });
  node.style.backgroundImage = `url(${uri})`;
  node.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  const share = (at, count) => (count > 1 ? (100 * at) / (count - 1) : 0);
  node.style.backgroundPosition = `${share(column, columns)}% ${share(row, rows)}%`;
  return node;
}

// Pictures grow pale while patches of them are shaded.
function fadePictures(shaded) {
  for (const picture of document.querySelectorAll(".picture")) {
    const own = Number(picture.querySelector(".token").dataset.text);
    picture.classList.toggle("shaded", own === shaded);
  }
}
