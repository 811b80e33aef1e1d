// The page's table: sorted by the buttons in its head, filtered by text and by choices, saved as CSV, each row
// unfolding to its details.

const table = { columns: [], rows: [], filters: [], csv: [], sorting: {}, unfolded: new Set() };

// `columns` have a key, a title and, unless the row has `texts[key]` and `values[key]`, functions for both;
// the one that `unfolds` shows the series of the row and the button that unfolds it.
// `filters` have a name, a label and a function from row to text. `csv` pairs the titles of the file with
// functions from row to value. `detail` makes what an unfolded row shows, `search` what the text filter reads.
function makeTable(options) {
  Object.assign(table, options);
  table.columns = options.columns.map((column) => ({
    numeric: !column.text,
    text: (row) => row.texts[column.key],
    sort: column.text ?? ((row) => row.values[column.key]),
    ...column,
  }));
  table.start = { ...table.sorting };
  drawTableHead();
  const form = document.getElementById("table-controls");
  for (const { name, label, of } of table.filters) {
    const values = [...new Set(table.rows.map(of))];
    const options = values.length > 1 ? [["", "all"], ...values.map((value) => [value, value])] : [["", "all"]];
    choice(form, name, label, options, "", drawTable);
  }
  form.append(document.getElementById("table-count"), document.getElementById("table-csv"));
  const filter = document.getElementById("table-filter");
  filter.addEventListener("input", () => { drawTable(); rememberView(true); });
  document.getElementById("table-csv").addEventListener("click", saveRows);
  inView("table.filter", () => [filter.value], ([text]) => { filter.value = text; });
  inView("table.sort", () => [(table.sorting.descending ? "-" : "") + table.sorting.key], ([text]) => readSorting(text));
  inView("table.open", () => [...table.unfolded].sort(), (ids) => {
    table.unfolded = new Set(ids.filter((id) => table.rows.some((row) => row.id === id)));
  });
}

function readSorting(text) {
  const key = text.replace(/^-/, "");
  const known = table.columns.some((column) => column.key === key);
  table.sorting = known ? { key, descending: text !== key } : { ...table.start };
}

function compareRows(a, b) {
  const { sort } = table.columns.find((column) => column.key === table.sorting.key);
  const [left, right] = [sort(a), sort(b)];
  if (left === null || right === null) return (left === null) - (right === null); // unknown always last
  const order = typeof left === "string" ? left.localeCompare(right) : left - right;
  return table.sorting.descending ? -order : order;
}

function rowsShown() {
  const words = document.getElementById("table-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = selectionOf("table-controls");
  return table.rows
    .filter((row) => !hiddenSeries.has(row.series))
    .filter((row) => table.filters.every(({ name, of }) => !chosen[name] || of(row) === chosen[name]))
    .filter((row) => words.every((word) => table.search(row).toLowerCase().includes(word)))
    .sort(compareRows);
}

function drawTableHead() {
  const cells = table.columns.map((column) => {
    const button = element("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      const again = table.sorting.key === column.key;
      table.sorting = { key: column.key, descending: again && !table.sorting.descending };
      drawTable();
      rememberView();
    });
    return element("th", { scope: "col", "data-key": column.key, class: column.numeric ? "number" : "" }, button);
  });
  document.querySelector("#table thead").replaceChildren(element("tr", {}, ...cells));
}

function drawTable() {
  const shown = rowsShown();
  for (const head of document.querySelectorAll("#table th[data-key]")) {
    const mine = head.dataset.key === table.sorting.key;
    head.setAttribute("aria-sort", mine ? (table.sorting.descending ? "descending" : "ascending") : "none");
  }
  document.querySelector("#table tbody").replaceChildren(...shown.flatMap(tableRows));
  document.getElementById("table-count").value = `${shown.length} of ${table.rows.length} ${table.noun}`;
}

function tableRows(row) {
  const open = table.unfolded.has(row.id);
  const cells = table.columns.map((column) => {
    if (column.unfolds) return element("th", { scope: "row" }, unfoldButton(row, open));
    const kind = column.numeric ? "number" : column.kind?.(row) ?? "";
    return element("td", { class: kind }, column.text(row));
  });
  const line = element("tr", { "data-row": row.id }, ...cells);
  if (!open) return [line];
  const detail = element("td", { colspan: table.columns.length }, element("div", { class: "detail" }, ...table.detail(row)));
  return [line, element("tr", { class: "unfolded" }, detail)];
}

function unfoldButton(row, open) {
  const button = element("button", { type: "button", class: "unfold", "aria-expanded": String(open) },
    glyph(row.series), page.series[row.series].name);
  button.addEventListener("click", () => {
    if (!table.unfolded.delete(row.id)) table.unfolded.add(row.id);
    drawTable();
    rememberView();
    [...document.querySelectorAll("#table tr[data-row]")].find((line) => line.dataset.row === row.id).querySelector(".unfold").focus();
  });
  return button;
}

function factList(facts) {
  const known = facts.filter(([, value]) => value);
  return element("dl", {}, ...known.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function csvText(rows) {
  const lines = [table.csv.map(([title]) => csvCell(title)), ...rows.map((row) => table.csv.map(([, of]) => csvCell(of(row))))];
  return lines.map((cells) => `${cells.join()}\r\n`).join("");
}

// Spreadsheets run texts that begin like a formula: an apostrophe keeps them texts.
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

function saveRows() {
  const address = URL.createObjectURL(new Blob([csvText(rowsShown())], { type: "text/csv" }));
  const link = element("a", { href: address, download: `${fileName(`${page.name} ${table.noun}`)}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
