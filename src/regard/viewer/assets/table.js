// All heads with all their scores: sortable, and the way in for those who cannot see the map.

const table = { sort: "", descending: true };

const tableColumns = [
  { name: "head", value: (entry) => entry.call.index * 1e5 + entry.head },
  { name: "kind", value: (entry) => entry.kind },
  ...scoreNames.map((name) => ({ name, value: (entry) => entry.scores[name], isScore: true })),
  { name: "module", value: (entry) => entry.call.name },
];

// What changed most comes first, until something else is chosen.
const sortedBy = () => table.sort || (run().compares ? "change" : "");

function sortedHeads() {
  const column = tableColumns.find(({ name }) => name === sortedBy());
  if (!column) return run().heads;
  const sign = table.descending ? -1 : 1;
  const unknown = table.descending ? -Infinity : Infinity;
  return [...run().heads].sort((a, b) => {
    const [x, y] = [column.value(a) ?? unknown, column.value(b) ?? unknown];
    return sign * (x < y ? -1 : x > y ? 1 : 0);
  });
}

function drawTable() {
  $("table-head").replaceChildren(...tableColumns.map(headerCell));
  const shown = sortedHeads().filter(passesFilter);
  $("table-body").replaceChildren(...shown.map(tableRow));
  $("table-count").textContent =
    shown.length === run().heads.length
      ? pluralise(run().heads.length, "head")
      : `${shown.length} of ${pluralise(run().heads.length, "head")}, as filtered on the map`;
}

function headerCell(column) {
  const active = sortedBy() === column.name;
  const arrow = active ? (table.descending ? " ↓" : " ↑") : "";
  const button = element("button", { type: "button" }, column.name + arrow);
  button.title = record.glossary[column.name] || `Sort by ${column.name}`;
  button.onclick = () => {
    table.descending = active ? !table.descending : Boolean(column.isScore);
    table.sort = column.name;
    drawTable();
  };
  const cell = element("th", { scope: "col" }, button);
  cell.classList.toggle("number", Boolean(column.isScore));
  if (active) cell.setAttribute("aria-sort", table.descending ? "descending" : "ascending");
  return cell;
}

function tableRow(entry) {
  const label = headLabel(entry.call, entry.head);
  const button = element("button", { type: "button", className: "link" }, label);
  const dot = element("i", { className: "dot" });
  dot.style.background = kindColour(entry.kind);
  const row = element(
    "tr",
    {},
    element("th", { scope: "row" }, button),
    element("td", {}, dot, entry.kind),
    ...scoreNames.map((name) => scoreCell(entry, name)),
    element("td", { className: "module" }, entry.call.name),
  );
  row.classList.toggle("chosen", entry.call.index === state.call && entry.head === state.head);
  row.onclick = () => chooseHead(entry.call.index, entry.head);
  entry.row = row;
  return row;
}

function scoreCell(entry, name) {
  const value = entry.scores[name];
  const shown = name === "change" ? formatScore(value) : signed(formatScore(value), value);
  const cell = element("td", { className: "number" }, shown);
  const place = 100 * (run().compares ? scoreBar : scorePlace)(entry, name);
  const colour = cssColour("tint");
  cell.style.background = `linear-gradient(to left, ${colour} ${place}%, transparent ${place}%)`;
  return cell;
}

function markRow() {
  for (const entry of run().heads) {
    const chosen = entry.call.index === state.call && entry.head === state.head;
    entry.row?.classList.toggle("chosen", chosen);
  }
}

// Text that a spreadsheet would run as a formula is kept as text.
function csvField(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

function tableCsv() {
  const names = ["module", "layer", "head", "kind", ...scoreNames];
  const rows = sortedHeads().map((entry) => [
    entry.call.name,
    entry.call.layer,
    entry.call.numbers[entry.head],
    entry.kind,
    ...scoreNames.map((name) => entry.scores[name]),
  ]);
  return [names, ...rows].map((row) => row.map(csvField).join(",")).join("\r\n") + "\r\n";
}

function startTable() {
  $("csv").onclick = () =>
    download("attention-heads.csv", new Blob([tableCsv()], { type: "text/csv;charset=utf-8" }));
  watch(["run", "kind", "filter", "bound", "side", "theme"], drawTable);
  watch(["call", "head"], markRow);
}
