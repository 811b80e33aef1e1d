// Quality against size.

function drawQualities({ published }) {
  const selection = selectionOf("quality-controls");
  panels("quality-panels", page.settings).forEach((plot, setting) => {
    const cells = page.cells.filter((cell) => cell.setting === setting);
    const curves = published.filter((curve) => selection.published === "shown" && curve.setting === setting && !hiddenSeries.has(curve.series));
    if (page.sizes.length > 1) drawLines(plot, cells, curves);
    else drawDots(plot, cells, curves);
  });
}

function publishedLine(curve) {
  const { colour } = seriesStyle(curve.series);
  return {
    type: "scatter", mode: "lines+markers", name: `${seriesName(curve.series)}, published`, legendrank: 2000, x: curve.sizes, y: curve.values,
    line: { color: colour, width: 1.3, dash: "dash" }, marker: publishedMarker(curve.series, 9), opacity: 0.85,
    hoverinfo: "text", hovertext: curve.hover.map((lines) => hoverText(lines)),
  };
}

// Several sizes: one line per candidate, moved sideways a little so that bars do not hide each other.
function drawLines(plot, cells, published) {
  const logs = page.sizes.map((size) => Math.log2(size));
  const gap = Math.min(...logs.slice(1).map((value, index) => value - logs[index]));
  const count = page.series.length;
  const traces = shownSeries().flatMap((index) => {
    const shift = 2 ** ((count > 1 ? (index - (count - 1) / 2) / count : 0) * 0.16 * gap);
    const mine = cells.filter((cell) => cell.series === index).sort((a, b) => a.size - b.size);
    const good = mine.filter((cell) => cell.quality);
    const lost = mine.filter((cell) => cell.diverged);
    const { colour, dash } = seriesStyle(index);
    return [
      {
        type: "scatter", mode: "lines+markers", name: seriesName(index), x: good.map((cell) => cell.size * shift),
        y: good.map((cell) => cell.quality[0]), error_y: spreadBars(good.map((cell) => cell.quality), colour),
        line: { color: colour, width: 2, dash }, marker: marker(index, 10),
        hoverinfo: "text", hovertext: good.map((cell) => hoverText(cell.hover)),
      },
      crosses(lost.map((cell) => cell.size * shift), lost.map(badEdge), lost, index),
    ];
  });
  traces.unshift(...published.map(publishedLine));
  const pad = 0.35 * gap * Math.log10(2);
  const sizes = [...new Set([...page.sizes, ...published.flatMap((curve) => curve.sizes)])].sort((a, b) => a - b);
  const xaxis = axis(page.words.size_title, {
    type: "log", tickvals: sizes, ticktext: sizes.map(String),
    range: [Math.log10(sizes[0]) - pad, Math.log10(sizes.at(-1)) + pad],
  });
  draw(plot, traces, layout(xaxis, qualityAxis(), chanceLine("y")));
}

// One size: a row per candidate, best on top, names beside the dots.
function drawDots(plot, cells, published) {
  const sign = page.quality.better === "higher" ? 1 : -1;
  const value = (cell) => (cell.quality ? sign * cell.quality[0] : -Infinity);
  const shown = cells.filter((cell) => !hiddenSeries.has(cell.series));
  const rows = shown.sort((a, b) => value(a) - value(b) || b.series - a.series);
  const traces = rows.flatMap((cell, row) => [
    ...(cell.quality ? [{
      type: "scatter", mode: "markers", x: [cell.quality[0]], y: [row], marker: marker(cell.series, 11),
      error_x: spreadBars([cell.quality], seriesStyle(cell.series).colour),
      hoverinfo: "text", hovertext: [hoverText(cell.hover)],
    }] : []),
    ...(cell.diverged ? [crosses([badEdge()], [row], [cell], cell.series)] : []),
    ...published.filter((curve) => curve.series === cell.series).map((curve) => ({
      type: "scatter", mode: "markers", x: curve.values, y: [row], marker: publishedMarker(cell.series, 10),
      hoverinfo: "text", hovertext: curve.hover.map((lines) => hoverText(lines)),
    })),
  ]);
  const yaxis = axis("", {
    tickvals: rows.map((_, row) => row),
    ticktext: rows.map((cell) => short(page.series[cell.series].name, plot.clientWidth < 500 ? 16 : 30)),
    range: [-0.7, rows.length - 0.3], ticks: "",
  });
  const xaxis = qualityAxis();
  const height = Math.max(180, 86 + 34 * rows.length);
  draw(plot, traces, layout(xaxis, yaxis, { ...chanceLine("x"), height, margin: { l: 52, r: 22, t: 26, b: 46 } }));
}

section("quality", {
  controls(data) {
    const redraw = () => drawQualities(data);
    if (data.published.length) toggle(document.getElementById("quality-controls"), "published", "Published results", redraw);
  },
  draw: drawQualities,
});
