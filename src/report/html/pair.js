// The page of one pair: its verdict and metrics, its error at each token, the predictions of both sides, and commands.

function pairPage(data, kept, run, name, [a, b], close) {
  const [i, j] = [a, b].map((variant) => data.names.indexOf(variant));
  const pair = pairIndex(i, j);
  const verdict = data.verdicts[pair] ?? "not run";
  const heading = make("h4", { tabindex: -1 }, `${a} / ${b}`);
  const here = link({ case: name, pair: `${a}..${b}` });
  const commands = [
    ["prints everything that the run knows about the pair", command("tfcheck", "explain", run, `${name}/${a}..${b}`)],
    ["runs both variants again", command("tfcheck", "run", run, "--only", `${name}/${a}`, "--only", `${name}/${b}`)],
    ["finds the first module that diverges", command("tfcheck", "localize", "--run", run, "--case", name, a, b)],
  ];
  const page = make(
    "section",
    { class: "pair", "aria-label": `${a} and ${b}` },
    make("p", { class: "controls" }, make("button", { type: "button", class: "back", on: { click: close } }, "← matrix"), make("a", { href: here }, "link to this pair")),
    heading,
    make("p", { class: "verdict" }, make("b", { class: TONES[verdict] || "none" }, verdict), `: ${data.evidence[pair] ?? data.absent[pair] ?? ""}`),
  );
  const details = kept.find((one) => (one.a === a && one.b === b) || (one.a === b && one.b === a));
  if (details) page.append(...closer(data, details));
  else {
    const why = verdict === "not run" || data.absent[pair] ? "The pair was not compared." : "This page keeps no tokens and no distances of this pair. This command prints its worst positions:";
    page.append(make("p", { class: "omitted" }, why, " ", why.endsWith(":") ? shown(commands[0][1]) : ""));
  }
  page.append(numbers(data, i, j));
  const list = commands.map(([what, text]) => make("li", {}, shown(text), ` ${what}`));
  page.append(make("h5", {}, "Commands"), make("ul", { class: "commands" }, ...list));
  return { page, heading };
}

// The table of all metrics, with each side as the reference.
function numbers(data, i, j) {
  const rows = data.metrics.map((metric) => {
    const [there, back] = [valueOf(metric, i, j), valueOf(metric, j, i)].map((value) => written(value, metric.format));
    return make("tr", {}, make("th", { scope: "row" }, metric.title), make("td", {}, there), make("td", {}, metric.back ? back : ""), make("td", {}, metric.unit));
  });
  const head = make("tr", {}, make("th", {}, "Metric"), make("th", {}, "first as reference"), make("th", {}, "second as reference"), make("th", {}, "unit"));
  return make("details", {}, make("summary", {}, "All metrics"), make("div", { class: "scroll" }, make("table", { class: "numbers" }, make("thead", {}, head), make("tbody", {}, ...rows))));
}

// The pair's details: chart, tokens, predictions, histogram.
function closer(data, details) {
  const looks = ["first", "second", "third"];
  const names = { "difference of the two": null, "first against float64": details.a, "second against float64": details.b };
  const used = details.keys.map((key) => {
    const look = key.startsWith("second") ? 2 : key.startsWith("first") ? 1 : 0;
    return make("span", { class: `key ${looks[look]}` }, names[key] ? `${names[key]} against float64` : key);
  });
  const parts = [figure(["Relative L2 at each token: ", ...used], details.chart), strip(data, details)];
  if (details.worst.length) parts.push(worst(data, details));
  parts.push(figure([`Distances of the logits: ${details.sentence}.`], details.ulps));
  return parts;
}

// A token with visible white space; its id if the text is unknown, or else its position.
function tokenText(token, position) {
  if (token === null || token === undefined) return `#${position}`;
  if (typeof token === "number") return String(token);
  return token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/ /g, "\u00b7");
}

// The input as text; each token's colour intensity is its error.
function strip(data, details) {
  const finite = details.errors.filter((value) => typeof value === "number" && value > 0);
  const [low, high] = [Math.min(1e-9, ...finite), Math.max(1e-6, ...finite)];
  const lines = [];
  let line = null;
  details.errors.forEach((error, index) => {
    const [row, position] = data.positions[index];
    if (!line || line.row !== row) {
      line = { row, element: make("p", {}, make("span", { class: "row" }, `row ${row}`)) };
      lines.push(line);
    }
    if (error === null) return;
    const wrong = typeof error === "string";
    const depth = wrong ? 1 : error > 0 ? Math.max(0.04, Math.log(error / low) / Math.log(high / low)) : 0;
    const title = `row ${row}, position ${position}: relative L2 ${written(error, ["digits", 2])}`;
    const token = make("span", { class: `token${wrong ? " wrong" : ""}${depth > 0.55 ? " deep" : ""}`, title }, tokenText(data.tokens[index], position));
    token.style.setProperty("--heat", `${Math.round(100 * depth)}%`);
    line.element.append(token);
  });
  const caption = "Each input token; the colour is the relative L2 of the logits at its position, on a logarithmic scale from 1e-9 to the largest.";
  return make("figure", { class: "strip" }, make("figcaption", {}, caption), ...lines.map((line) => line.element));
}

// The positions that differ most, with the largest logits of both sides.
function worst(data, details) {
  const predictions = (side) =>
    make(
      "td",
      {},
      make("ol", {}, ...side.map(([id, text, logit, probability]) => {
        const name = text === null ? `token ${id}` : `${tokenText(text)} (${id})`;
        return make("li", {}, make("span", { class: "guess" }, name), ` ${written(probability, ["percent", 1])} `, make("small", {}, written(logit, ["decimals", 3])));
      }))
    );
  const rows = details.worst.map((one) => {
    const [row, position] = data.positions[one.position];
    const token = tokenText(data.tokens[one.position], position);
    return make("tr", {}, make("th", { scope: "row" }, make("span", { class: "guess" }, token), make("br"), make("small", {}, `row ${row}, position ${position}`)), make("td", {}, written(one.error, ["digits", 2])), predictions(one.a), predictions(one.b));
  });
  const head = make("tr", {}, make("th", {}, "After token"), make("th", {}, "Relative L2"), make("th", {}, `${details.a} predicts`), make("th", {}, `${details.b} predicts`));
  const table = make("table", { class: "worst" }, make("thead", {}, head), make("tbody", {}, ...rows));
  return make("figure", {}, make("figcaption", {}, "The worst positions, with the five largest logits of both sides: probability, logit."), make("div", { class: "scroll" }, table));
}
