// The table of every run: sorted by its head's buttons, filtered by text, each row unfolding to its full spec.

const COLUMNS = [
  { key: "mixer", title: "mixer", text: (run) => study.mixers[run.mixer].name },
  { key: "setting", title: "setting", text: (run) => study.settings[run.setting], sort: (run) => run.setting },
  { key: "width", title: "width" },
  { key: "learning_rate", title: "learning rate" },
  { key: "seed", title: "seed" },
  { key: "status", title: "status", text: (run) => run.status },
  { key: "quality", title: study.quality.name },
  { key: "loss", title: "loss" },
  { key: "parameters", title: "parameters" },
  { key: "state", title: "state" },
  { key: "memory", title: "memory" },
  { key: "rate", title: "tokens/s" },
  { key: "seconds", title: "time" },
].map((column) => ({
  numeric: !column.text,
  text: (run) => run.texts[column.key],
  sort: column.text ?? ((run) => run.values[column.key]),
  ...column,
}));

const sorting = { key: "quality", descending: study.quality.better === "higher" };
const unfolded = new Set();

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function compareRuns(a, b) {
  const { sort } = COLUMNS.find((column) => column.key === sorting.key);
  const [left, right] = [sort(a), sort(b)];
  if (left === null || right === null) return (left === null) - (right === null); // unknown always last
  const order = typeof left === "string" ? left.localeCompare(right) : left - right;
  return sorting.descending ? -order : order;
}

function searchText(run) {
  const columns = COLUMNS.slice(0, 6).map((column) => `${column.title} ${column.text(run)}`);
  return [...columns, run.layers, run.id, run.message ?? ""].join(" ").toLowerCase();
}

function drawTableHead() {
  const cells = COLUMNS.map((column) => {
    const button = element("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      sorting.descending = sorting.key === column.key ? !sorting.descending : false;
      sorting.key = column.key;
      drawTableBody();
    });
    return element("th", { scope: "col", "data-key": column.key, class: column.numeric ? "number" : "" }, button);
  });
  document.querySelector("#run-table thead").replaceChildren(element("tr", {}, ...cells));
}

function drawTableBody() {
  const words = document.getElementById("run-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = study.runs
    .filter((run) => !hiddenMixers.has(run.mixer))
    .filter((run) => words.every((word) => searchText(run).includes(word)))
    .sort(compareRuns);
  for (const head of document.querySelectorAll("#run-table th[data-key]")) {
    const mine = head.dataset.key === sorting.key;
    head.setAttribute("aria-sort", mine ? (sorting.descending ? "descending" : "ascending") : "none");
  }
  document.querySelector("#run-table tbody").replaceChildren(...shown.flatMap(tableRows));
  document.getElementById("run-count").value = `${shown.length} of ${study.runs.length} runs`;
}

function tableRows(run) {
  const open = unfolded.has(run.id);
  const cells = COLUMNS.map((column) => {
    if (column.key === "mixer") return element("th", { scope: "row" }, unfoldButton(run, open));
    const kind = column.numeric ? "number" : column.key === "status" ? `status ${run.status}` : "";
    return element("td", { class: kind }, column.text(run));
  });
  const row = element("tr", { "data-run": run.id }, ...cells);
  return open ? [row, detailRow(run)] : [row];
}

function unfoldButton(run, open) {
  const button = element("button", { type: "button", class: "unfold", "aria-expanded": String(open) },
    glyph(run.mixer), study.mixers[run.mixer].name);
  button.addEventListener("click", () => {
    if (!unfolded.delete(run.id)) unfolded.add(run.id);
    drawTableBody();
    document.querySelector(`#run-table tr[data-run="${run.id}"] .unfold`).focus();
  });
  return button;
}

function detailRow(run) {
  const facts = [
    ["run", run.id], ["layers", run.layers], ["status", run.status], ["message", run.message],
    ["started", run.started], ["environment", run.environment],
  ].filter(([, value]) => value);
  const list = element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const command = document.querySelector(".command").textContent;
  const detail = element("div", { class: "detail" },
    element("div", {}, list, element("p", {}, "Part of the study made by"), element("pre", {}, command)),
    element("div", {}, element("p", {}, "Full spec"), element("pre", {}, run.spec)));
  return element("tr", { class: "unfolded" }, element("td", { colspan: COLUMNS.length }, detail));
}
