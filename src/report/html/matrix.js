// The matrix of a case as a heat map of any metric, ordered by group.

// The reader's choices, which apply to every case of the page.
const chosen = { metric: "relative_l2", scale: "log" };
const redraws = [];

const TONES = {
  "identical": "good",
  "same mathematics": "good",
  "worse rounding": "warn",
  "diverged": "bad",
  "incomparable": "bad",
};

// Index of a pair of variants in the data's lists of pairs.
const pairIndex = (i, j) => {
  const [a, b] = i < j ? [i, j] : [j, i];
  return (b * (b - 1)) / 2 + a;
};

// A metric's value with `row` as the reference.
const valueOf = (metric, row, column) => ((row > column && metric.back) || metric.values)[pairIndex(row, column)];

// Distance of a value from agreement; `null` if there is no value, infinite if the value is not finite.
function distance(metric, value) {
  if (value === null || value === undefined) return null;
  if (typeof value === "string") return Infinity;
  return metric.larger ? Math.max(0, 1 - value) : Math.abs(value);
}

// A function from distances to colour intensities from 0 to 1, the ends of the scale, and whether a value is not finite.
function scaleOf(metric, scale) {
  const known = metric.values.concat(metric.back || []).map((value) => distance(metric, value));
  const finite = known.filter((value) => value !== null && Number.isFinite(value));
  const positive = finite.filter((value) => value > 0);
  let high = Math.max(...finite, 0);
  if (scale === "linear") {
    return { of: (value) => (high > 0 ? Math.min(1, value / high) : 0), ends: [0, high], wrong: known.includes(Infinity) };
  }
  let low = positive.length ? Math.min(...positive) : high;
  // Relative metrics use the same range in every case, so that colours are comparable.
  if (metric.unit === "" && metric.format[0] !== "count") [low, high] = [Math.min(1e-9, low), Math.max(1, high)];
  if (!(low < high)) low = high / 10;
  const of = (value) => (value > 0 ? Math.max(0.04, (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))) : 0);
  return { of, ends: [low, high], wrong: known.includes(Infinity) };
}

// The heat map and its controls; `pick` is called with the two variants of a cell.
function matrix(data, pick) {
  const table = make("table", { class: "heat", role: "grid", "aria-label": "variants by variants" });
  const legend = make("p", { class: "legend" });
  const select = make("select", { "aria-label": "metric" });
  for (const metric of data.metrics) {
    const unit = metric.unit ? ` (${metric.unit})` : "";
    select.append(make("option", { value: metric.name }, `${metric.title}${unit}`));
  }
  const scales = ["log", "linear"].map((scale) =>
    make("button", { type: "button", "data-scale": scale, on: { click: () => choose({ scale }) } }, scale)
  );
  select.addEventListener("change", () => choose({ metric: select.value }));
  const draw = () => {
    const focused = table.contains(document.activeElement) ? document.activeElement.dataset.at : null;
    const metric = data.metrics.find((metric) => metric.name === chosen.metric) || data.metrics[0];
    select.value = metric.name;
    scales.forEach((button) => button.setAttribute("aria-pressed", button.dataset.scale === chosen.scale));
    fill(table, data, metric, scaleOf(metric, chosen.scale));
    explain(legend, metric, scaleOf(metric, chosen.scale));
    arrows(table, "td[tabindex]");
    if (focused) table.querySelector(`[data-at="${focused}"]`)?.focus();
  };
  const open = (event) => {
    const cell = event.target.closest("td[data-at]");
    if (!cell || (event.type === "keydown" && event.key !== "Enter")) return;
    event.preventDefault();
    pick(...cell.dataset.at.split(",").map((index) => data.names[index]));
  };
  table.addEventListener("click", open);
  table.addEventListener("keydown", open);
  redraws.push(draw);
  draw();
  const controls = make("p", { class: "controls" }, make("label", {}, "Metric ", select), make("span", { class: "choice", role: "group", "aria-label": "colour scale" }, ...scales));
  const hint = make("p", {}, "The row is the reference. The colour is the metric, the line below a number the verdict. A cell opens the pair; arrow keys move, Enter opens, Esc goes back.");
  const noise = data.noise ? make("p", {}, `The diagonal: ${data.noise}.`) : null;
  return make("section", { class: "matrix" }, make("h4", {}, "Matrix"), hint, controls, make("div", { class: "scroll tall" }, table), legend, noise);
}

function choose(change) {
  Object.assign(chosen, change);
  redraws.forEach((draw) => draw());
}

function fill(table, data, metric, scale) {
  const { names, order, groups } = data;
  const isEdge = (at) => at > 0 && groups[order[at]] !== groups[order[at - 1]];
  const head = make("tr", {}, make("th", {}, ""));
  order.forEach((index, at) => {
    head.append(make("th", { scope: "col", title: names[index], class: isEdge(at) ? "edge" : null }, make("b", {}, groups[index] || "–"), ` ${at + 1}`));
  });
  const rows = order.map((row, at) => {
    const label = make("th", { scope: "row", title: names[row] }, make("span", {}, `${at + 1}`), make("b", {}, groups[row] || "–"), ` ${names[row]}`);
    const cells = order.map((column, across) => cellOf(data, metric, scale, row, column, isEdge(across)));
    return make("tr", { class: isEdge(at) ? "edge" : null }, label, ...cells);
  });
  table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

function cellOf(data, metric, scale, row, column, isEdge) {
  const edge = isEdge ? " edge" : "";
  if (row === column) return make("td", { class: `self${edge}`, title: `${data.names[row]} against its own repetitions` }, data.diagonal[row] ?? "");
  const pair = pairIndex(row, column);
  const value = valueOf(metric, row, column);
  const far = distance(metric, value);
  const verdict = data.verdicts[pair] ?? "not run";
  const names = `${data.names[row]} / ${data.names[column]}`;
  const title = data.absent[pair] ? `${names}: ${data.absent[pair]}` : `${names}: ${verdict}; ${metric.title} ${written(value, metric.format)}`;
  const at = { "data-at": `${row},${column}`, tabindex: -1, title };
  if (far === null) return make("td", { ...at, class: `absent ${TONES[verdict] || "none"}${edge}` }, data.absent[pair] ? verdict : "—");
  const depth = far === Infinity ? 1 : scale.of(far);
  const wrong = far === Infinity ? " wrong" : "";
  const deep = depth > 0.55 ? " deep" : "";
  const cell = make("td", { ...at, class: `${TONES[verdict] || "none"}${deep}${wrong}${edge}` }, brief(value, metric.format));
  cell.style.setProperty("--heat", `${Math.round(100 * depth)}%`);
  return cell;
}

function explain(legend, metric, scale) {
  const end = (value) => brief(metric.larger ? 1 - value : value, metric.format);
  const wrong = scale.wrong ? make("i", { class: "wrong" }, "not a number") : null;
  const lines = [["good", "same or identical"], ["warn", "worse rounding"], ["bad", "diverged or incomparable"]];
  legend.replaceChildren(
    `${metric.title} ${end(scale.ends[0])} `,
    make("span", { class: "ramp" }),
    ` ${end(scale.ends[1])} `,
    wrong ?? "",
    ...lines.map(([tone, words]) => make("i", { class: tone }, words))
  );
}
