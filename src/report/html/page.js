// Links, keys, and the interactive part of a case.

const index = JSON.parse(document.getElementById("index").textContent);
const cases = [...document.querySelectorAll("details.case")];
const built = new Map();

// The interactive part of a case; it is built when it is first needed.
function build(element) {
  const name = element.dataset.case;
  if (!built.has(name)) built.set(name, make_case(element, name, index.cases.indexOf(name)));
  return built.get(name);
}

async function make_case(element, name, number) {
  const place = element.querySelector(".interactive");
  const data = await unpack(`case-${number}`);
  const pick = (a, b) => (location.hash = link({ case: name, pair: `${a}..${b}` }));
  const heat = matrix(data, pick);
  place.append(heat);
  for (const chart of data.charts) place.append(figure([chart.title], chart.svg));
  for (const markup of data.profiles) place.insertAdjacentHTML("beforeend", markup);
  element.classList.add("drawn");
  for (const code of element.querySelectorAll(".variants code")) code.replaceWith(shown(code.textContent));
  return { data, heat, name, number, place, kept: null };
}

// Opens the page of a pair in place of the matrix.
async function openPair(of, pair) {
  closePair(of);
  const sides = twoNames(pair, of.data.names);
  if (!sides) {
    of.place.prepend(make("section", { class: "pair" }, make("p", { class: "omitted" }, `The case has no pair ${pair}.`)));
    return;
  }
  of.kept ??= (await unpack(`pairs-${of.number}`)).filter(Boolean);
  const close = () => (location.hash = link({ case: of.name }));
  const { page, heading } = pairPage(of.data, of.kept, index.run, of.name, sides, close);
  of.heat.hidden = true;
  of.heat.before(page);
  of.last = sides.map((name) => of.data.names.indexOf(name)).join(",");
  page.scrollIntoView({ block: "start" });
  heading.focus({ preventScroll: true });
}

// Splits `A..B` into two known names; a name may itself contain two dots.
function twoNames(pair, names) {
  for (let at = pair.indexOf(".."); at >= 0; at = pair.indexOf("..", at + 1)) {
    const sides = [pair.slice(0, at), pair.slice(at + 2)];
    if (sides.every((side) => names.includes(side)) && sides[0] !== sides[1]) return sides;
  }
  return null;
}

function closePair(of) {
  const page = of.place.querySelector(".pair");
  if (!page) return false;
  page.remove();
  of.heat.hidden = false;
  return true;
}

// Shows the case, cell or pair of the URL fragment.
async function follow() {
  const { case: name, pair, cell } = parts(location.hash);
  const element = cases.find((one) => one.dataset.case === name);
  document.querySelectorAll(".target").forEach((row) => row.classList.remove("target"));
  if (!element) return;
  element.open = true;
  const of = await build(element);
  if (pair) return openPair(of, pair);
  if (closePair(of)) return of.heat.querySelector(`[data-at="${of.last}"]`)?.focus();
  const row = cell && document.getElementById(`case=${name}&cell=${cell}`);
  row?.classList.add("target");
  (row || element).scrollIntoView({ block: row ? "center" : "start" });
  (row?.querySelector("a") || element.querySelector("summary")).focus({ preventScroll: true });
}

// Goes back from a pair to its matrix, or from a case to the grid.
function back() {
  const { case: name, pair, cell } = parts(location.hash);
  if (!name) return;
  if (pair) return (location.hash = link({ case: name }));
  history.pushState(null, "", location.pathname + location.search);
  const grid = document.querySelector("table.grid");
  const wanted = [cell && link({ case: name, cell }), link({ case: name })].filter(Boolean);
  const links = grid ? [...grid.querySelectorAll("td a, th a")] : [];
  const found = links.find((one) => wanted.includes(one.getAttribute("href"))) || links.find((one) => parts(one.hash).case === name);
  found?.focus();
  found?.scrollIntoView({ block: "center" });
}

function start() {
  document.documentElement.classList.add("scripted");
  const grid = document.querySelector("table.grid");
  if (grid) arrows(grid, "td a");
  const only = document.getElementById("differences");
  if (only) {
    const plain = [...grid.querySelectorAll("tr.plain")];
    only.closest("p").hidden = plain.length === 0 || plain.length === grid.tBodies[0].rows.length;
    only.addEventListener("change", () => plain.forEach((row) => (row.hidden = only.checked)));
  }
  const schemes = ["light dark", "light", "dark"];
  const scheme = make("button", { type: "button", class: "scheme" }, "scheme: system");
  scheme.addEventListener("click", () => {
    schemes.push(schemes.shift());
    document.documentElement.style.colorScheme = schemes[0];
    scheme.textContent = `scheme: ${schemes[0] === "light dark" ? "system" : schemes[0]}`;
  });
  document.querySelector("header").append(scheme);
  for (const element of cases) {
    element.addEventListener("toggle", () => element.open && build(element));
    if (element.open) build(element);
  }
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !["SELECT", "INPUT"].includes(event.target.tagName)) back();
  });
  // Printing unfolds all cases of a page with at most 8; a page with more prints only the open ones.
  addEventListener("beforeprint", () => {
    if (cases.length <= 8) cases.forEach((element) => (element.open = true));
  });
  follow();
}

start();
