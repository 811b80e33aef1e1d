// The page that reports study A against study B: two figures, and the table of every common cell.

const nameOf = (pair) => page.series[pair.series].name;
const settingOf = (pair) => page.settings[pair.setting];

const COLUMNS = [
  { key: page.words.candidate, title: page.words.candidate, unfolds: true, text: nameOf },
  { key: "setting", title: "setting", text: settingOf, sort: (pair) => pair.setting, kind: () => "setting" },
  { key: page.words.size, title: page.words.size },
  { key: "study", title: `${page.quality.name} A` },
  { key: "baseline", title: `${page.quality.name} B` },
  { key: "difference", title: "A − B" },
  { key: "verdict", title: "verdict", text: (pair) => pair.verdict_text, kind: (pair) => `verdict ${pair.verdict.replace(" ", "-")}` },
  ...page.costs.map(({ key, title }) => ({ key, title })),
];

const CSV = [
  [page.words.candidate, nameOf], ["setting", settingOf], [page.words.size, (pair) => pair.size],
  ...[
    ["quality_a", "study"], ["quality_b", "baseline"], ["difference", "difference"], ["difference_low", "low"],
    ["difference_high", "high"], ["standard_error", "standard_error"],
  ].map(([title, key]) => [title, (pair) => pair.values[key]]),
  ["verdict", (pair) => pair.verdict_text],
  ["learning_rate_a", (pair) => pair.values.study_rate], ["learning_rate_b", (pair) => pair.values.baseline_rate],
  ...page.costs.map(({ key }) => [`${key}_ratio`, (pair) => pair.values[key]]),
];

function searchText(pair) {
  return [nameOf(pair), settingOf(pair), `${page.words.size} ${pair.size}`, pair.verdict_text, page.series[pair.series].about].join(" ");
}

function pairDetail(pair) {
  const lines = ["A", "B"].map((label, side) => element("div", {}, element("p", {}, `In ${label}`),
    element("ul", {}, ...pair.details[side].map((line) => element("li", {}, line)))));
  const changes = pair.changes.map(([name, mine, other]) => [name, `${mine} in A, ${other} in B`]);
  const differs = changes.length ? factList(changes) : element("p", {}, "Nothing: the specifications are the same.");
  return [...lines, element("div", {}, element("p", {}, "What differs"), differs)];
}

function shownPairs(setting) {
  return page.pairs.filter((pair) => pair.setting === setting && !hiddenSeries.has(pair.series));
}

// A against B: what lies on the diagonal has not changed.
function drawScatter() {
  panels("scatter-panels", page.settings).forEach((plot, setting) => {
    const pairs = shownPairs(setting).filter((pair) => pair.difference);
    const traces = shownSeries().map((index) => {
      const mine = pairs.filter((pair) => pair.series === index);
      const { colour } = seriesStyle(index);
      return {
        type: "scatter", mode: "markers", name: seriesName(index),
        x: mine.map((pair) => pair.quality[1][0]), y: mine.map((pair) => pair.quality[0][0]),
        error_x: spreadBars(mine.map((pair) => pair.quality[1]), colour),
        error_y: spreadBars(mine.map((pair) => pair.quality[0]), colour),
        marker: marker(index, mine.map((pair) => symbolSize(pair.size))),
        hoverinfo: "text", hovertext: mine.map((pair) => hoverText(pair.hover)),
      };
    });
    const [low, high] = page.quality.range;
    const diagonal = { type: "line", layer: "below", x0: low, y0: low, x1: high, y1: high, line: { color: cssColour("--line"), width: 1.5 } };
    const title = (label) => `${page.quality.name} in ${label}`;
    const { range } = page.quality;
    draw(plot, traces, layout(axis(title("B"), { range }), axis(title("A"), { range }), { shapes: [diagonal], height: 380 }));
  });
}

// One row per candidate and size, the largest gain on top.
function drawDifferences(selection) {
  const settings = settingsShown(selection);
  const bounds = page.pairs.filter((pair) => pair.difference).flatMap(({ difference }) => difference.slice(1));
  const reach = 1.08 * Math.max(...bounds.map(Math.abs), 1e-6);
  const titles = settings.map((setting) => `A − B, ${page.settings[setting]}`);
  const sign = page.quality.better === "higher" ? 1 : -1;
  panels("difference-panels", titles).forEach((plot, index) => {
    const rows = shownPairs(settings[index]).filter((pair) => pair.difference
      && isSizeShown(pair.size, selection))
      .sort((a, b) => sign * (a.difference[0] - b.difference[0]));
    const traces = rows.map((pair, row) => ({
      type: "scatter", mode: "markers", x: [pair.difference[0]], y: [row], marker: marker(pair.series, 10),
      error_x: spreadBars([pair.difference], seriesStyle(pair.series).colour),
      hoverinfo: "text", hovertext: [hoverText(pair.hover)],
    }));
    const most = plot.clientWidth < 500 ? 16 : 34;
    const yaxis = axis("", {
      tickvals: rows.map((_, row) => row), ticktext: rows.map((pair) => `${short(nameOf(pair), most)}, ${pair.size}`), range: [-0.7, rows.length - 0.3], ticks: "",
    });
    const xaxis = axis(`difference in ${page.quality.name}`, { range: [-reach, reach], tickformat: "+~g" });
    const zero = { type: "line", layer: "below", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: cssColour("--muted"), width: 1.5 } };
    draw(plot, traces, layout(xaxis, yaxis, { shapes: [zero], height: Math.max(180, 86 + 24 * rows.length) }));
  });
}

const redrawDifferences = () => drawDifferences(selectionOf("difference-controls"));

function drawAll() {
  drawScatter();
  redrawDifferences();
  drawTable();
}

buildLegend();
const form = document.getElementById("difference-controls");
choice(form, "setting", "Setting", settingOptions(), page.settings.length > 1 ? "" : page.settings[0] ?? "", redrawDifferences);
sizeChoice(form, everySize(), redrawDifferences);
makeTable({
  noun: "common cells", rows: page.pairs, columns: COLUMNS, csv: CSV, search: searchText, detail: pairDetail,
  sorting: { key: "difference", descending: page.quality.better === "higher" },
  filters: [
    { name: page.words.candidate, label: capitalised(page.words.candidate), of: nameOf },
    { name: "setting", label: "Setting", of: settingOf },
    { name: "verdict", label: "Verdict", of: (pair) => pair.verdict_text },
  ],
});
startPage();
