// Quality against width and against cost.

function drawWidths(selection) {
  const plots = panels("width-panels", page.settings);
  plots.forEach((plot, setting) => {
    const cells = page.cells.filter((cell) => cell.setting === setting);
    const published = selection.published === "shown" ? page.published.filter((curve) => curve.setting === setting) : [];
    const shown = published.filter((curve) => !hiddenSeries.has(curve.series));
    if (page.widths.length > 1) drawLines(plot, cells, shown);
    else drawDots(plot, cells, shown);
  });
}

// What a paper reports for the same mixer: hollow, so that nobody takes it for a measurement of this study.
function publishedMarker(index, size) {
  const look = marker(index, size);
  return { ...look, symbol: `${look.symbol}-open`, line: { color: look.color, width: 1.6 } };
}

function publishedHover(curve, value) {
  return hoverText([...curve.hover, `${page.quality.name} ${value.toFixed(2)}, read off the paper's figure`]);
}

function publishedLine(curve) {
  const { colour } = seriesStyle(curve.series);
  return {
    type: "scatter", mode: "lines+markers", name: `${seriesName(curve.series)}, published`, legendrank: 2000, x: curve.widths, y: curve.values,
    line: { color: colour, width: 1.3, dash: "dash" }, marker: publishedMarker(curve.series, 9), opacity: 0.85,
    hoverinfo: "text", hovertext: curve.values.map((value, rank) => publishedHover({ ...curve,
      hover: [`${curve.hover[0]}, width ${curve.widths[rank]}`, ...curve.hover.slice(1)] }, value)),
  };
}

// Several widths: one line per mixer, moved sideways a little so that bars do not hide each other.
function drawLines(plot, cells, published) {
  const logs = page.widths.map((width) => Math.log2(width));
  const gap = Math.min(...logs.slice(1).map((value, index) => value - logs[index]));
  const count = page.series.length;
  const traces = shownSeries().flatMap((index) => {
    const shift = 2 ** ((count > 1 ? (index - (count - 1) / 2) / count : 0) * 0.16 * gap);
    const mine = cells.filter((cell) => cell.series === index).sort((a, b) => a.width - b.width);
    const good = mine.filter((cell) => cell.quality);
    const lost = mine.filter((cell) => cell.diverged);
    const { colour, dash } = seriesStyle(index);
    return [
      {
        type: "scatter", mode: "lines+markers", name: seriesName(index), x: good.map((cell) => cell.width * shift),
        y: good.map((cell) => cell.quality[0]), error_y: spreadBars(good.map((cell) => cell.quality), colour),
        line: { color: colour, width: 2, dash }, marker: marker(index, 10),
        hoverinfo: "text", hovertext: good.map((cell) => hoverText(cell.hover)),
      },
      crosses(lost.map((cell) => cell.width * shift), lost.map(badEdge), lost, index),
    ];
  });
  traces.unshift(...published.map(publishedLine));
  const pad = 0.35 * gap * Math.log10(2);
  const widths = [...new Set([...page.widths, ...published.flatMap((curve) => curve.widths)])].sort((a, b) => a - b);
  const xaxis = axis("model width (channels)", {
    type: "log", tickvals: widths, ticktext: widths.map(String),
    range: [Math.log10(widths[0]) - pad, Math.log10(widths.at(-1)) + pad],
  });
  draw(plot, traces, layout(xaxis, qualityAxis(), chanceLine("y")));
}

// One width: a row per mixer, best on top, names beside the dots.
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
      hoverinfo: "text", hovertext: curve.values.map((value) => publishedHover(curve, value)),
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

const COST_TITLES = {
  state: "Decoding state", published_state: "Decoding state as published", flops: "Training compute", memory: "Activation memory", rate: "Training speed",
};

function drawCosts(selection) {
  const costs = [selection.state ?? "state", "flops", "memory", "rate"];
  const jobs = settingsShown(selection).flatMap((setting) => costs.map((cost) => ({ setting, cost })));
  const titles = jobs.map(({ setting, cost }) =>
    page.settings.length > 1 ? `${COST_TITLES[cost]}, ${page.settings[setting]}` : COST_TITLES[cost]);
  panels("cost-panels", titles).forEach((plot, index) => {
    const { setting, cost } = jobs[index];
    const cells = page.cells.filter((cell) => cell.setting === setting && cell[cost] !== null
      && !hiddenSeries.has(cell.series) && (!selection.width || cell.width === Number(selection.width)));
    drawCost(plot, cells, cost);
  });
}

function drawCost(plot, cells, cost) {
  const { title, range, ticks, labels } = page.axes[cost];
  const traces = [frontier(cells, cost)];
  for (const index of shownSeries()) {
    const mine = cells.filter((cell) => cell.series === index).sort((a, b) => a.width - b.width);
    const good = mine.filter((cell) => cell.quality);
    const lost = mine.filter((cell) => cell.diverged);
    const { colour, dash } = seriesStyle(index);
    traces.push({
      type: "scatter", mode: "lines+markers", name: seriesName(index), x: good.map((cell) => cell[cost]), y: good.map((cell) => cell.quality[0]),
      error_y: spreadBars(good.map((cell) => cell.quality), colour),
      ...(cost === "rate" ? { error_x: spreadBars(good.map((cell) => cell.rate_spread), colour) } : {}),
      line: { color: colour, width: 1.2, dash }, marker: marker(index, good.map((cell) => widthSize(cell.width))),
      hoverinfo: "text", hovertext: good.map((cell) => hoverText(cell.hover)),
    }, crosses(lost.map((cell) => cell[cost]), lost.map(badEdge), lost, index));
  }
  const xaxis = axis(title, { type: "log", range, tickvals: ticks, ticktext: labels, ticklabeloverflow: "allow" });
  draw(plot, traces, layout(xaxis, qualityAxis(), chanceLine("y")));
}

// The steps along which no shown point is both better and cheaper.
function frontier(cells, cost) {
  const cheaper = cost === "rate" ? -1 : 1;
  const better = page.quality.better === "higher" ? 1 : -1;
  const points = cells.filter((cell) => cell.quality).sort((a, b) => cheaper * (a[cost] - b[cost]));
  const kept = [];
  for (const cell of points) {
    if (!kept.length || better * (cell.quality[0] - kept.at(-1).quality[0]) > 0) kept.push(cell);
  }
  return {
    type: "scatter", mode: "lines", hoverinfo: "skip", x: kept.map((cell) => cell[cost]),
    y: kept.map((cell) => cell.quality[0]), line: { shape: "hv", width: 5, color: cssColour("--frontier") },
  };
}
