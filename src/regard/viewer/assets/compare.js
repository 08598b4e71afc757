// Two runs of one model: each by itself, and what changed from the first to the second. A call of
// the third run holds no arrays; its `pair` are the calls that it compares.

function changeRun([before, after]) {
  const compare = (calls) => (call, n) => ({
    ...call,
    arrays: {},
    pair: [call, calls[n]],
    scores: Object.fromEntries(
      Object.entries(call.scores).map(([name, values]) => [
        name,
        name === "change" ? values : values.map((value, h) => minus(calls[n].scores[name]?.[h], value)),
      ]),
    ),
  });
  return {
    name: "change",
    compares: true,
    calls: before.calls.map(compare(after.calls)),
    rollouts: after.rollouts.length ? before.rollouts.map(compare(after.rollouts)) : [],
  };
}

const isNumber = (value) => value !== null && value !== undefined;
const minus = (a, b) => (isNumber(a) && isNumber(b) ? a - b : null);

// after − before of two arrays of numbers.
const difference = ([before, after]) => after.map((value, i) => value - before[i]);

const largestOf = (values) => values.reduce((high, value) => Math.max(high, Math.abs(value)), 0);

// A number of the present run: with its sign where it is a change.
function signed(text, value) {
  return run().compares && value > 0 ? `+${text}` : text;
}

// The chosen head in all three runs, small; a click shows one of them large.
async function drawStrip() {
  if (runs.length === 1) return;
  const { call, head } = state;
  const matrices = await Promise.all(runs.map((each) => heatMatrix(each.calls[call], head)));
  if (call !== state.call || head !== state.head) return;
  const high = Math.max(matrices[0].high, matrices[1].high);
  $("strip").replaceChildren(
    ...runs.map((each, n) => {
      const { values, rows, columns, low } = matrices[n];
      const own = each.compares ? matrices[n].high : high;
      const picture = paintMatrix(values, rows, columns, makeScale(state.scale, low, own, each.compares));
      const label = element("span", {}, visible(each.name));
      const button = element("button", { type: "button", value: n }, picture, label);
      button.onclick = () => set({ run: n });
      return button;
    }),
  );
  press("strip", `${state.run}`);
}

function startCompare() {
  const several = runs.length > 1;
  $("run").hidden = !several;
  $("strip").hidden = !several;
  if (!several) return;
  $("run").replaceChildren(
    ...runs.map((each, n) => element("button", { type: "button", value: n }, shorten(visible(each.name), 22))),
  );
  chooseWith("run", (value) => set({ run: Number(value) }));
  watch(["run"], () => press("run", `${state.run}`));
  watch(["call", "head", "scale", "measure", "sinks", "theme"], drawStrip);
  press("run", `${state.run}`);
}
