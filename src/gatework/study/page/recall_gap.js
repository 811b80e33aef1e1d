// Text: where the gap to attention lies.

const GAP_PANELS = [
  ["Perplexity on AR hits against other tokens", drawPerplexities],
  ["Gap to the base, by its parts", drawGapParts],
  ["Share of the gap on AR hits", drawGapShares],
];

function drawGap(gap) {
  const selection = selectionOf("gap-controls");
  const wanted = gap.base ? GAP_PANELS : GAP_PANELS.slice(0, 1);
  const jobs = settingsShown(selection).flatMap((setting) => wanted.map(([title, of]) => ({ setting, title, of })));
  const titles = jobs.map(({ setting, title }) => settingTitle(title.replace("the base", () => gap.base), setting));
  const cells = gap.cells.map((cell, position) => ({ ...page.cells[position], ...cell, hover: [...page.cells[position].hover, ...cell.lines] }));
  panels("gap-panels", titles).forEach((plot, index) => {
    const { setting, of } = jobs[index];
    of(plot, gap, cells.filter((cell) => cell.setting === setting && !hiddenSeries.has(cell.series) && isSizeShown(cell.size, selection)), selection);
  });
}

function drawPerplexities(plot, gap, cells) {
  const { hits: vertical, other: horizontal } = gap.axes;
  const edge = ({ range: [low, high] }) => 10 ** (high - 0.025 * (high - low));
  const traces = shownSeries().flatMap((index) => {
    const mine = cells.filter((cell) => cell.series === index).sort((a, b) => a.size - b.size);
    const good = mine.filter((cell) => cell.hits && cell.other);
    const lost = mine.filter((cell) => cell.status === "diverged");
    const { colour, dash } = seriesStyle(index);
    return [
      {
        type: "scatter", mode: "lines+markers", name: seriesName(index), x: good.map((cell) => cell.other[0]), y: good.map((cell) => cell.hits[0]),
        error_x: spreadBars(good.map((cell) => cell.other), colour), error_y: spreadBars(good.map((cell) => cell.hits), colour),
        line: { color: colour, width: 1.2, dash }, marker: marker(index, good.map((cell) => symbolSize(cell.size))),
        hoverinfo: "text", hovertext: good.map((cell) => hoverText(cell.hover)),
      },
      crosses(lost.map((cell) => cell.other?.[0] ?? edge(horizontal)), lost.map(() => edge(vertical)), lost, index),
    ];
  });
  const base = cells.filter((cell) => cell.status === "base" && cell.hits && cell.other);
  traces.push({
    type: "scatter", mode: "markers+text", x: base.map((cell) => cell.other[0]), y: base.map((cell) => cell.hits[0]), hoverinfo: "skip",
    text: base.map(() => "base"), textposition: "top right", textfont: { size: 11, color: cssColour("--muted") },
    marker: { symbol: "circle-open", size: base.map((cell) => symbolSize(cell.size) + 9), color: cssColour("--muted"), line: { width: 1.3 } },
  });
  const low = 10 ** Math.max(vertical.range[0], horizontal.range[0]);
  const high = 10 ** Math.min(vertical.range[1], horizontal.range[1]);
  const line = { color: cssColour("--line"), width: 1.3, dash: "dash" };
  const shapes = low < high ? [{ type: "line", layer: "below", x0: low, y0: low, x1: high, y1: high, line }] : [];
  draw(plot, traces, layout(logAxis(horizontal), logAxis(vertical), { shapes, height: 380 }));
}

// What the two panels of rows share: a row per mixer and width, the smallest gap on top.
function gapRows(cells) {
  const value = (cell) => (cell.gap ? cell.gap[0] : Infinity);
  return cells.filter((cell) => cell.gap || cell.status === "diverged")
    .sort((a, b) => (value(b) > value(a)) - (value(b) < value(a)) || b.series - a.series);
}

function rowAxis(plot, rows) {
  const several = new Set(rows.map((cell) => cell.size)).size > 1;
  const most = plot.clientWidth < 500 ? 16 : 30;
  const name = (cell) => short(page.series[cell.series].name, most) + (several ? `, ${cell.size}` : "");
  return axis("", { tickvals: rows.map((_, row) => row), ticktext: rows.map(name), range: [-0.7, rows.length - 0.3], ticks: "" });
}

function rowLayout(xaxis, plot, rows, more) {
  const height = Math.max(180, 86 + 34 * rows.length);
  return layout(xaxis, rowAxis(plot, rows), { height, margin: { l: 52, r: 66, t: 10, b: 46 }, ...more });
}

function zeroLine() {
  return { type: "line", layer: "below", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: cssColour("--muted"), width: 1.3 } };
}

function drawGapParts(plot, gap, cells) {
  const rows = gapRows(cells);
  const colours = rows.map((cell) => seriesStyle(cell.series).colour);
  const part = (name, key, opacity) => ({
    type: "bar", orientation: "h", name, x: rows.map((cell) => (cell.status === "base" ? null : cell[key])), y: rows.map((_, row) => row), width: 0.56,
    marker: { color: colours, opacity, line: { color: colours, width: 1 } },
    hoverinfo: "text", hovertext: rows.map((cell) => hoverText(cell.hover)),
  });
  const right = gap.gap_range[1];
  const totals = rows.map((cell, row) => (cell.gap ? {
    type: "scatter", mode: "markers", name: seriesName(cell.series), x: [cell.gap[0]], y: [row], marker: marker(cell.series, 10),
    error_x: spreadBars([cell.gap], cssColour("--text")), hoverinfo: "text", hovertext: [hoverText(cell.hover)],
  } : crosses([0.98 * right], [row], [cell], cell.series)));
  const annotations = rows.map((cell, row) => ({
    text: cell.text, x: 1, xref: "paper", xanchor: "left", xshift: 5, y: row, showarrow: false, font: { size: 11.5, color: cssColour("--text") },
  }));
  const xaxis = axis(`gap to ${gap.base} in nats per token`, { range: gap.gap_range, tickformat: "~g" });
  const traces = rows.length ? [part("on AR hits", "on_hits", 0.85), part("on other tokens", "on_rest", 0.28), ...totals] : [];
  draw(plot, traces, rowLayout(xaxis, plot, rows, { barmode: "relative", shapes: [zeroLine()], annotations }));
}

function drawGapShares(plot, gap, cells, selection) {
  const known = selection.published === "shown" ? gap.published : [];
  const published = known.filter((entry) => !hiddenSeries.has(entry.series));
  const rows = gapRows(cells).filter((cell) => cell.share || published.some((entry) => entry.series === cell.series));
  const traces = rows.flatMap((cell, row) => [
    ...(cell.share ? [{
      type: "scatter", mode: "markers", name: seriesName(cell.series), x: [cell.share[0]], y: [row], marker: marker(cell.series, 11),
      error_x: spreadBars([cell.share], seriesStyle(cell.series).colour), hoverinfo: "text", hovertext: [hoverText(cell.hover)],
    }] : []),
    ...published.filter((entry) => entry.series === cell.series).map((entry) => ({
      type: "scatter", mode: "markers", name: `${seriesName(cell.series)}, published`, legendrank: 2000, x: [entry.share], y: [row],
      marker: publishedMarker(cell.series, 10), cliponaxis: false, hoverinfo: "text", hovertext: [hoverText(entry.hover)],
    })),
  ]);
  const xaxis = axis("share of the gap on AR hits", { range: gap.share_range, tickvals: [0, 0.25, 0.5, 0.75, 1], tickformat: ".0%" });
  draw(plot, traces, rowLayout(xaxis, plot, rows, { shapes: [zeroLine()], margin: { l: 52, r: 22, t: 10, b: 46 } }));
}

section("recall_gap", {
  controls(gap) {
    const form = document.getElementById("gap-controls");
    const redraw = () => drawGap(gap);
    choice(form, "setting", "Setting", settingOptions(), page.settings[page.clearest_setting], redraw);
    sizeChoice(form, largestSize(), redraw);
    if (gap.published.length) toggle(form, "published", "Published shares", redraw);
  },
  draw: drawGap,
});
