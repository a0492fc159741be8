// Functions that the other scripts use: numbers as text, elements, packed data, links and shell words.

// A number in its metric's format; a string such as "NaN" stays text, and a missing value becomes a dash.
function written(value, [kind, digits]) {
  if (value === null || value === undefined) return "—";
  if (typeof value === "string") return value.replace("-inf", "−∞").replace("inf", "∞");
  if (kind === "percent") return `${(100 * value).toFixed(digits)} %`;
  if (kind === "count") return String(value);
  if (kind === "decimals" && (value === 0 || Math.abs(value) >= 1e-3)) return value.toFixed(Math.min(digits, 9));
  return value === 0 ? "0" : value.toExponential(Math.min(digits, 3));
}

// A number in few enough characters for a cell of the matrix.
function brief(value, [kind]) {
  if (typeof value !== "number") return written(value, [kind, 0]);
  if (kind === "percent") return `${(100 * value).toFixed(1)}`;
  if (value === 0 || (Number.isInteger(value) && value < 1e4)) return String(value);
  return Math.abs(value) >= 0.01 && Math.abs(value) < 1000 ? value.toPrecision(3) : value.toExponential(1);
}

// Creates an element with attributes and children; strings become text nodes, never markup.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A figure with a chart; `markup` is SVG that tfcheck wrote.
function figure(caption, markup) {
  const element = make("figure", {}, make("figcaption", {}, ...caption));
  element.insertAdjacentHTML("beforeend", markup);
  return element;
}

// Decodes an element's content: base64 of gzip-compressed JSON.
async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

// A URL fragment: `#case=…&pair=…`.
function link(parts) {
  const of = ([key, value]) => `${key}=${encodeURIComponent(value).replace(/['()*!]/g, (c) => `%${c.charCodeAt(0).toString(16)}`)}`;
  return `#${Object.entries(parts).map(of).join("&")}`;
}

// Parses a URL fragment into an object.
function parts(hash) {
  const found = {};
  for (const part of hash.replace(/^#/, "").split("&")) {
    const [key, ...rest] = part.split("=");
    try {
      if (key && rest.length) found[key] = decodeURIComponent(rest.join("="));
    } catch {
      // A truncated escape sequence: the part is ignored.
    }
  }
  return found;
}

// A shell command with its words quoted where necessary.
function command(...words) {
  return words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ");
}

// A command on the page, with a button that copies it.
function shown(text) {
  const copy = async (event) => {
    try {
      await navigator.clipboard.writeText(text);
      event.target.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(event.target.previousSibling);
      event.target.textContent = "selected";
    }
  };
  return make("span", { class: "command" }, make("code", {}, text), make("button", { type: "button", on: { click: copy } }, "copy"));
}

// Arrow keys move between the cells of a table; Tab stops at only one of them.
function arrows(table, selector) {
  const all = [...table.querySelectorAll(selector)];
  const current = () => all.find((cell) => cell.tabIndex === 0) || all[0];
  all.forEach((cell, index) => (cell.tabIndex = index ? -1 : 0));
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  table.addEventListener("focusin", (event) => {
    if (!all.includes(event.target)) return;
    current().tabIndex = -1;
    event.target.tabIndex = 0;
  });
  table.addEventListener("keydown", (event) => {
    const move = step[event.key];
    if (!move || !all.includes(event.target)) return;
    event.preventDefault();
    let at = event.target.closest("td");
    let [row, column] = [at.parentNode.rowIndex, at.cellIndex];
    for (;;) {
      [row, column] = [row + move[0], column + move[1]];
      at = table.rows[row]?.cells[column];
      if (!at) return;
      const next = all.find((cell) => cell === at || cell.parentNode === at);
      if (next && at.offsetParent) return next.focus();
    }
  });
}
