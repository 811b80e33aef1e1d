// The page of the simulator of neighbourhood attention: its table, its controls, and what is drawn when.

const caseOf = (row) => page.panels[row.panel].name;
const yesNo = (value) => (value ? "yes" : "no");
const isKnown = (key) => page.rows.some((row) => row.values[key] !== null);

const COLUMNS = [
  { key: "tiles", title: "tiles", unfolds: true, text: (row) => page.series[row.series].name },
  { key: "case", title: "case", text: caseOf, sort: (row) => row.panel, kind: () => "setting" },
  { key: "window", title: "window", text: (row) => row.texts.window },
  { key: "stride", title: "stride", text: (row) => row.texts.stride, sort: (row) => row.values.stride_product },
  { key: "visited", title: "visited", text: (row) => row.texts.visited, sort: (row) => row.values.worst_visited, numeric: true },
  { key: "speedup", title: "speed-up" },
  { key: "share_of_ideal", title: "of ideal" },
  { key: "full_share", title: "no mask" },
  { key: "dynamic_speedup", title: "dynamic" },
  { key: "flattened_speedup", title: "flattened" },
  { key: "end_to_end", title: "end to end" },
  { key: "paper_end_to_end", title: "paper" },
  { key: "paper_measured", title: "measured" },
].filter(({ key }) => !["end_to_end", "paper_end_to_end", "paper_measured"].includes(key) || isKnown(key))
  .filter(({ key }) => key !== "case" || page.panels.length > 1);

const CSV = [
  ["case", caseOf], ["why", (row) => row.why], ["tiles", (row) => page.series[row.series].name],
  ...["grid", "window", "stride", "dilation"].map((key) => [key, (row) => row.texts[key]]),
  ["causal_axes", (row) => row.causal.join(" ")], ["is_perfect", (row) => yesNo(row.perfect)],
  ...Object.keys(page.rows[0].values).map((key) => [key, (row) => row.values[key]]),
];

function searchText(row) {
  const { grid, window: size, stride } = row.texts;
  return [page.series[row.series].name, caseOf(row), `grid ${grid}`, `window ${size}`, `stride ${stride}`, row.why, row.perfect ? "perfect" : ""].join(" ");
}

function rowDetail(row) {
  const { texts, values } = row;
  const dilated = /[2-9]|1\d/.test(texts.dilation);
  return [
    element("div", {}, factList([
      ["why it is here", row.reason], ["grid", texts.grid], ["dilation", dilated && texts.dilation], ["causal axes", row.causal.join(", ")],
      ["perfectly block-sparse", `${yesNo(row.perfect)}; with tiles cut from the windows ${yesNo(row.perfect_dynamic)}`],
      ["tiles divide window and stride", yesNo(row.divisible)],
      ["key tiles visited on average", texts.mean_visited],
    ])),
    element("div", {}, factList([
      ["ideal", texts.ideal_speedup], ["by allowed pairs", values.exact_ideal_speedup !== values.ideal_speedup && texts.exact_ideal_speedup],
      ["by the mean of the visits", texts.mean_speedup],
      ["attention's share of the time", values.end_to_end !== null && texts.attention_share],
      ["first steps dense", values.end_to_end_partial !== null && `${texts.end_to_end_partial}, ${texts.sparse_steps} of the steps sparse`],
      ["the same in the paper", values.paper_end_to_end_partial !== null && texts.paper_end_to_end_partial],
    ])),
  ];
}

function buildControls() {
  const trade = document.getElementById("trade-controls");
  const cases = page.panels.map((panel, index) => [String(index), panel.title]);
  choice(trade, "panel", "Case", cases.length > 1 ? [["", "every case"], ...cases] : cases, cases.length > 1 ? "" : "0", redrawTrade);
  const tiles = document.getElementById("tiles-controls");
  const several = new Set(page.rows.map((row) => row.panel)).size > 1;
  const rows = page.rows.map((row, index) => [String(index), `${several ? `${caseOf(row)}: ` : ""}window ${row.texts.window}, stride ${row.texts.stride}, tiles ${page.series[row.series].name}`]);
  const drawn = rows.filter((_, index) => page.rows[index].picture);
  choice(tiles, "row", "Of", drawn, drawn.length ? drawn[0][0] : "", redrawTiles);
  choice(tiles, "where", "Tile of queries", [["worst", "the busiest"], ["first", "the first"], ["middle", "in the middle"], ["last", "the last"]], "worst", redrawTiles);
}

const redrawTrade = () => drawTrade(selectionOf("trade-controls"));
const redrawTiles = () => drawTiles(selectionOf("tiles-controls"));

function drawAll() {
  redrawTrade();
  drawPaper();
  redrawTiles();
  drawTable();
}

buildLegend();
buildControls();
makeTable({
  noun: "simulations", rows: page.rows, columns: COLUMNS, csv: CSV, search: searchText, detail: rowDetail,
  sorting: { key: page.panels.length > 1 ? "case" : "speedup", descending: page.panels.length === 1 },
  filters: [
    { name: "case", label: "Case", of: caseOf },
    { name: "stride", label: "Stride", of: (row) => row.texts.stride },
    { name: "why", label: "Why", of: (row) => row.reason },
    { name: "perfect", label: "Perfectly block-sparse", of: (row) => yesNo(row.perfect) },
  ],
});
startPage();
