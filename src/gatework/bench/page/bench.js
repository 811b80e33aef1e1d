// The page of one benchmark of attention: share of the ideal, growth with the length, every measurement.

const engineOf = (row) => page.series[row.series].name;
const maskOf = (row) => page.masks[row.mask].name;
const PASS_NAMES = { forward: "forward", backward: "backward alone", both: "forward + backward" };
const passOf = (row) => PASS_NAMES[row.pass];
const MEASURES = [["seconds", "time"], ["tflops", "TFLOP/s"], ["peak_bytes", "peak memory"]];

const COLUMNS = [
  { key: "engine", title: "engine", unfolds: true, text: engineOf },
  { key: "mask", title: "mask", text: maskOf, sort: (row) => row.mask, kind: () => "setting" },
  { key: "pass", title: "pass", text: passOf },
  { key: "length", title: "tokens" },
  { key: "head_dim", title: "head size" },
  { key: "dtype", title: "dtype", text: (row) => row.dtype },
  { key: "status", title: "status", text: (row) => (row.status === "wrong" ? "WRONG" : row.status), kind: (row) => `status ${row.status}` },
  { key: "seconds", title: "time" },
  { key: "spread", title: "20 – 80 %", sort: (row) => row.values.seconds_low },
  { key: "tflops", title: "TFLOP/s" },
  { key: "peak_bytes", title: "peak memory" },
  { key: "speedup", title: "speed-up" },
  { key: "share_of_ideal", title: "of ideal" },
  { key: "growth", title: "growth" },
].filter(({ key }) => ({ head_dim: page.head_dims, dtype: page.dtypes, pass: page.passes }[key] ?? [0, 0]).length > 1);

const CSV = [
  ["engine", engineOf], ["mask", maskOf], ["expression", (row) => page.masks[row.mask].text], ["pass", (row) => row.pass],
  ["dtype", (row) => row.dtype], ["status", (row) => row.status], ["reason", (row) => row.reason],
  ...Object.keys(page.rows[0]?.values ?? {}).map((key) => [key, (row) => row.values[key]]),
];

function searchText(row) {
  return [engineOf(row), maskOf(row), page.masks[row.mask].text, passOf(row), row.dtype, row.status, row.reason ?? "",
    `length ${row.values.length}`, `head_dim ${row.values.head_dim}`].join(" ");
}

function rowDetail(row) {
  const { texts, values } = row;
  const measured = row.status === "measured";
  return [
    element("div", {}, factList([
      ["mask", page.masks[row.mask].text], ["engine", `${engineOf(row)}: ${page.series[row.series].about}`],
      ["status", row.status], ["reason", row.reason], ["allowed pairs", texts.density],
    ])),
    element("div", {}, factList([
      ["without a mask", measured && texts.baseline_seconds], ["dense, with the mask", measured && texts.dense_seconds],
      ["speed-up over that", measured && texts.speedup_over_masked_dense], ["turns", measured && String(values.turns)],
      ["first call", values.first_call_seconds !== null && texts.first_call_seconds],
      ["largest error", values.error !== null && `${texts.error}, where ${values.tolerance.toExponential(0)} passes`],
    ])),
  ];
}

function rowsFor(selection) {
  return page.rows.filter((row) => row.status === "measured" && !hiddenSeries.has(row.series)
    && (!selection.pass || row.pass === selection.pass) && (!selection.dtype || row.dtype === selection.dtype)
    && (!selection.head_dim || row.values.head_dim === Number(selection.head_dim))
    && (!selection.length || row.values.length === Number(selection.length))
    && (!selection.mask || maskOf(row) === selection.mask));
}

// One panel per pass; a row per mask, the engines beside each other on it.
function drawShares(selection) {
  const all = page.passes.map((pass) => rowsFor({ ...selection, pass }));
  const reach = 108 * Math.max(...all.flat().map((row) => row.values.share_of_ideal), 1);
  panels("share-panels", page.passes.map((pass) => PASS_NAMES[pass])).forEach((plot, index) => {
    const masks = page.masks.map((_, mask) => mask).filter((mask) => all[index].some((row) => row.mask === mask)).reverse();
    const engines = shownSeries();
    const traces = engines.map((series, place) => {
      const mine = all[index].filter((row) => row.series === series);
      const shift = engines.length > 1 ? 0.5 * (0.5 - place / (engines.length - 1)) : 0;
      const share = (row, seconds) => (100 * row.values.share_of_ideal * row.values.seconds) / seconds;
      const spreads = mine.map((row) => [share(row, row.values.seconds), share(row, row.values.seconds_high), share(row, row.values.seconds_low)]);
      return {
        type: "scatter", mode: "markers", name: seriesName(series), x: spreads.map(([middle]) => middle),
        y: mine.map((row) => masks.indexOf(row.mask) + shift), error_x: spreadBars(spreads, seriesStyle(series).colour),
        marker: marker(series, 10), hoverinfo: "text", hovertext: mine.map((row) => hoverText(row.hover)),
      };
    });
    const most = plot.clientWidth < 500 ? 14 : 26;
    const yaxis = axis("", {
      tickvals: masks.map((_, row) => row), ticktext: masks.map((mask) => short(page.masks[mask].name, most)),
      range: [-0.6, masks.length - 0.4], ticks: "",
    });
    const ideal = { type: "line", layer: "below", x0: 100, x1: 100, yref: "paper", y0: 0, y1: 1, line: { color: cssColour("--muted"), width: 1.5, dash: "dot" } };
    const xaxis = axis("share of the ideal speed-up (%)", { range: [0, reach] });
    draw(plot, traces, layout(xaxis, yaxis, { shapes: [ideal], height: Math.max(190, 90 + 34 * masks.length) }));
  });
}

function logAxis(key) {
  const { title, range, ticks, labels } = page.axes[key];
  return axis(title, { type: "log", range, tickvals: ticks, ticktext: labels });
}

// What the baseline took at each length, and that multiplied by the density.
function baselineTraces(rows) {
  const lengths = [...new Set(rows.map((row) => row.values.length))].sort((a, b) => a - b);
  const first = lengths.map((length) => rows.find((row) => row.values.length === length));
  const line = (name, dash, value) => ({
    type: "scatter", mode: "lines", name, x: lengths, y: first.map(value), hoverinfo: "skip",
    line: { color: cssColour("--muted"), width: 1.6, dash },
  });
  return [
    line("no mask", "dash", (row) => row.values.baseline_seconds),
    line("ideal", "dot", (row) => row.values.baseline_seconds * row.values.density || null),
  ];
}

// One panel per mask.
function drawLengths(selection) {
  const masks = page.masks.map((mask) => mask.name).filter((name) => !selection.mask || name === selection.mask);
  const measure = selection.measure || "seconds";
  panels("length-panels", masks).forEach((plot, index) => {
    const rows = rowsFor({ ...selection, mask: masks[index] }).sort((a, b) => a.values.length - b.values.length);
    const traces = shownSeries().map((series) => {
      const mine = rows.filter((row) => row.series === series && row.values[measure]);
      const { colour, dash } = seriesStyle(series);
      return {
        type: "scatter", mode: "lines+markers", name: seriesName(series), x: mine.map((row) => row.values.length),
        y: mine.map((row) => row.values[measure]), line: { color: colour, width: 2, dash }, marker: marker(series, 9),
        hoverinfo: "text", hovertext: mine.map((row) => hoverText(row.hover)),
      };
    });
    if (measure === "seconds" && rows.length) traces.unshift(...baselineTraces(rows));
    draw(plot, traces, layout(logAxis("length"), logAxis(measure)));
  });
}

function buildControls() {
  const share = document.getElementById("share-controls");
  const numbers = (values) => values.map((value) => [String(value), String(value)]);
  const names = (values) => values.map((value) => [value, value]);
  choice(share, "length", "Tokens", numbers(page.lengths), Math.max(...page.lengths), redrawShares);
  choice(share, "head_dim", "Head size", numbers(page.head_dims), page.head_dims[0], redrawShares);
  choice(share, "dtype", "Dtype", names(page.dtypes), page.dtypes[0], redrawShares);
  const length = document.getElementById("length-controls");
  choice(length, "measure", "Show", MEASURES, "seconds", redrawLengths);
  const masks = names(page.masks.map((mask) => mask.name));
  choice(length, "mask", "Mask", masks.length > 1 ? [["", "every mask"], ...masks] : masks, masks.length > 1 ? "" : masks[0][0], redrawLengths);
  choice(length, "pass", "Pass", page.passes.map((pass) => [pass, PASS_NAMES[pass]]), page.passes[0], redrawLengths);
  choice(length, "head_dim", "Head size", numbers(page.head_dims), page.head_dims[0], redrawLengths);
  choice(length, "dtype", "Dtype", names(page.dtypes), page.dtypes[0], redrawLengths);
}

const redrawShares = () => drawShares(selectionOf("share-controls"));
const redrawLengths = () => drawLengths(selectionOf("length-controls"));

function drawAll() {
  redrawShares();
  redrawLengths();
  drawTable();
}

buildLegend();
buildControls();
makeTable({
  noun: "measurements", rows: page.rows, columns: COLUMNS, csv: CSV, search: searchText, detail: rowDetail,
  sorting: { key: "share_of_ideal", descending: true },
  filters: [
    { name: "engine", label: "Engine", of: engineOf },
    { name: "mask", label: "Mask", of: maskOf },
    { name: "dtype", label: "Dtype", of: (row) => row.dtype },
    { name: "pass", label: "Pass", of: passOf },
    { name: "status", label: "Status", of: (row) => row.status },
  ],
});
startPage();
