"use strict";
// The figures: quality against width, quality against cost, learning curves. All draw from `study`, the
// page's one JSON value, and show only the mixers that the legend has switched on.

const study = JSON.parse(document.getElementById("study-data").textContent);
const hiddenMixers = new Set();

const SYMBOLS = [
  "circle", "square", "diamond", "triangle-up", "triangle-down", "star", "cross",
  "hexagon", "triangle-left", "pentagon", "bowtie", "triangle-right", "hourglass",
];
// Plotly sizes symbols by their box; these bring pointed ones to the weight of the circle.
const SYMBOL_SCALE = {
  "triangle-up": 1.25, "triangle-down": 1.25, "triangle-left": 1.25, "triangle-right": 1.25, star: 1.35,
  cross: 1.1, diamond: 1.1, hexagon: 1.15, pentagon: 1.2,
};
const NUM_COLOURS = 10;
const FONT = "system-ui, -apple-system, sans-serif";
const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // named, so that none can send data away
  toImageButtonOptions: { format: "svg", filename: "gatework" },
};

// Plotly reads a little HTML in its texts; names from a study are to be shown as they are.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function short(text, most) {
  return plain(text.length > most ? text.slice(0, most - 1) + "…" : text);
}

function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// One colour and symbol per mixer over the whole page; both cycle, with lengths that have no common divisor.
function mixerStyle(index) {
  return {
    colour: cssColour(`--mixer-${index % NUM_COLOURS}`),
    symbol: SYMBOLS[index % SYMBOLS.length],
    dash: index < NUM_COLOURS ? "solid" : "dash",
  };
}

function marker(index, size) {
  const { colour, symbol } = mixerStyle(index);
  const scale = SYMBOL_SCALE[symbol] ?? 1;
  const scaled = Array.isArray(size) ? size.map((value) => value * scale) : size * scale;
  return { color: colour, symbol, size: scaled, opacity: 1, line: { color: cssColour("--surface"), width: 1 } };
}

function axis(title, more = {}) {
  const muted = cssColour("--muted");
  return {
    title: { text: plain(title), font: { size: 12, color: muted }, standoff: 8 },
    gridcolor: cssColour("--grid"), linecolor: cssColour("--line"), zeroline: false, showline: true,
    ticks: "outside", ticklen: 4, tickcolor: cssColour("--line"), tickfont: { size: 11.5, color: muted },
    automargin: true, fixedrange: matchMedia("(pointer: coarse)").matches, ...more,
  };
}

function layout(xaxis, yaxis, more = {}) {
  return {
    xaxis, yaxis,
    height: 340, margin: { l: 52, r: 22, t: 10, b: 46 }, showlegend: false, hovermode: "closest",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: FONT, size: 12, color: cssColour("--text") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: cssColour("--line"), activecolor: cssColour("--accent") },
    hoverlabel: {
      align: "left", bgcolor: cssColour("--surface"), bordercolor: cssColour("--line"),
      font: { family: FONT, size: 12.5, color: cssColour("--text") },
    },
    ...more,
  };
}

function qualityAxis(more = {}) {
  return axis(study.quality.title, { range: study.quality.range, ...more });
}

// Level of guessing, where it lies on the axis at all; `along` is the axis that shows quality.
function chanceLine(along) {
  const { chance, range, chance_text: text } = study.quality;
  if (chance === null || chance < range[0] || chance > range[1]) return {};
  const line = { color: cssColour("--muted"), width: 1, dash: "dot" };
  const label = { text, showarrow: false, font: { size: 11, color: cssColour("--muted") } };
  if (along === "x") {
    const left = chance < (range[0] + range[1]) / 2;
    return {
      shapes: [{ type: "line", layer: "below", line, x0: chance, x1: chance, yref: "paper", y0: 0, y1: 1 }],
      annotations: [{ ...label, x: chance, yref: "paper", y: 1, xanchor: left ? "left" : "right", yanchor: "bottom" }],
    };
  }
  return {
    shapes: [{ type: "line", layer: "below", line, y0: chance, y1: chance, xref: "paper", x0: 0, x1: 1 }],
    annotations: [{ ...label, y: chance, xref: "paper", x: 1, xanchor: "right", yanchor: "top" }],
  };
}

// The place at the bad edge of the quality axis where diverged seeds are drawn.
function badEdge() {
  const [low, high] = study.quality.range;
  return study.quality.better === "higher" ? low + 0.02 * (high - low) : high - 0.02 * (high - low);
}

function hoverText(lines, first = []) {
  const [title, ...rest] = lines.map(plain);
  return [`<b>${title}</b>`, ...first.map(plain), ...rest].join("<br>");
}

function spreadBars(values, colour) {
  return {
    type: "data", symmetric: false, thickness: 1.3, width: 3, color: colour,
    array: values.map(([mean, , high]) => high - mean), arrayminus: values.map(([mean, low]) => mean - low),
  };
}

function widthSize(width) {
  return 10 + Math.min(3 * study.widths.indexOf(width), 12);
}

function crosses(x, y, cells, index) {
  return {
    type: "scatter", mode: "markers", x, y, cliponaxis: false,
    marker: { symbol: "x-thin", size: 9, line: { width: 2.2, color: mixerStyle(index).colour } },
    hoverinfo: "text", hovertext: cells.map((cell) => hoverText(cell.hover)),
  };
}

// Make `titles.length` panels in a container, keep those that are already there, and return their plots.
function panels(containerId, titles) {
  const container = document.getElementById(containerId);
  while (container.children.length > titles.length) {
    Plotly.purge(container.lastElementChild.lastElementChild);
    container.lastElementChild.remove();
  }
  while (container.children.length < titles.length) {
    const figure = document.createElement("figure");
    const plot = document.createElement("div");
    plot.className = "plot";
    figure.append(document.createElement("figcaption"), plot);
    container.append(figure);
  }
  return titles.map((title, index) => {
    const [caption, plot] = container.children[index].children;
    caption.textContent = title;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${title}; its numbers are in the table of runs`);
    return plot;
  });
}

// Draw, or say that there is nothing to draw instead of showing an empty grid with made-up ticks.
function draw(plot, traces, wanted) {
  const empty = !traces.some((trace) => trace.x.length);
  const nothing = {
    text: "no measured run in this selection", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5,
    font: { size: 13, color: cssColour("--muted") },
  };
  const blank = {
    xaxis: { ...wanted.xaxis, visible: false }, yaxis: { ...wanted.yaxis, visible: false },
    shapes: [], annotations: [nothing], height: 140,
  };
  Plotly.react(plot, traces, empty ? { ...wanted, ...blank } : wanted, CONFIG);
}

function shownMixers() {
  return study.mixers.map((_, index) => index).filter((index) => !hiddenMixers.has(index));
}

function drawWidths() {
  const plots = panels("width-panels", study.settings);
  plots.forEach((plot, setting) => {
    const cells = study.cells.filter((cell) => cell.setting === setting);
    if (study.widths.length > 1) drawLines(plot, cells);
    else drawDots(plot, cells);
  });
}

// Several widths: one line per mixer, moved sideways a little so that bars do not hide each other.
function drawLines(plot, cells) {
  const logs = study.widths.map((width) => Math.log2(width));
  const gap = Math.min(...logs.slice(1).map((value, index) => value - logs[index]));
  const count = study.mixers.length;
  const traces = shownMixers().flatMap((index) => {
    const shift = 2 ** ((count > 1 ? (index - (count - 1) / 2) / count : 0) * 0.16 * gap);
    const mine = cells.filter((cell) => cell.mixer === index).sort((a, b) => a.width - b.width);
    const good = mine.filter((cell) => cell.quality);
    const lost = mine.filter((cell) => cell.diverged);
    const { colour, dash } = mixerStyle(index);
    return [
      {
        type: "scatter", mode: "lines+markers", x: good.map((cell) => cell.width * shift),
        y: good.map((cell) => cell.quality[0]), error_y: spreadBars(good.map((cell) => cell.quality), colour),
        line: { color: colour, width: 2, dash }, marker: marker(index, 10),
        hoverinfo: "text", hovertext: good.map((cell) => hoverText(cell.hover)),
      },
      crosses(lost.map((cell) => cell.width * shift), lost.map(badEdge), lost, index),
    ];
  });
  const pad = 0.35 * gap * Math.log10(2);
  const xaxis = axis("model width (channels)", {
    type: "log", tickvals: study.widths, ticktext: study.widths.map(String),
    range: [Math.log10(study.widths[0]) - pad, Math.log10(study.widths.at(-1)) + pad],
  });
  draw(plot, traces, layout(xaxis, qualityAxis(), chanceLine("y")));
}

// One width: a row per mixer, best on top, names beside the dots.
function drawDots(plot, cells) {
  const sign = study.quality.better === "higher" ? 1 : -1;
  const value = (cell) => (cell.quality ? sign * cell.quality[0] : -Infinity);
  const shown = cells.filter((cell) => !hiddenMixers.has(cell.mixer));
  const rows = shown.sort((a, b) => value(a) - value(b) || b.mixer - a.mixer);
  const traces = rows.flatMap((cell, row) => [
    ...(cell.quality ? [{
      type: "scatter", mode: "markers", x: [cell.quality[0]], y: [row], marker: marker(cell.mixer, 11),
      error_x: spreadBars([cell.quality], mixerStyle(cell.mixer).colour),
      hoverinfo: "text", hovertext: [hoverText(cell.hover)],
    }] : []),
    ...(cell.diverged ? [crosses([badEdge()], [row], [cell], cell.mixer)] : []),
  ]);
  const yaxis = axis("", {
    tickvals: rows.map((_, row) => row),
    ticktext: rows.map((cell) => short(study.mixers[cell.mixer].name, plot.clientWidth < 500 ? 16 : 30)),
    range: [-0.7, rows.length - 0.3], ticks: "",
  });
  const xaxis = qualityAxis();
  const height = Math.max(180, 86 + 34 * rows.length);
  draw(plot, traces, layout(xaxis, yaxis, { ...chanceLine("x"), height, margin: { l: 52, r: 22, t: 26, b: 46 } }));
}

const COSTS = ["state", "rate", "memory"];
const COST_TITLES = { state: "Decoding state", rate: "Training speed", memory: "Activation memory" };

function drawCosts(selection) {
  const settings = selection.setting === "all" ? study.settings.map((_, index) => index) : [Number(selection.setting)];
  const jobs = settings.flatMap((setting) => COSTS.map((cost) => ({ setting, cost })));
  const titles = jobs.map(({ setting, cost }) =>
    study.settings.length > 1 ? `${COST_TITLES[cost]}, ${study.settings[setting]}` : COST_TITLES[cost]);
  panels("cost-panels", titles).forEach((plot, index) => {
    const { setting, cost } = jobs[index];
    const cells = study.cells.filter((cell) => cell.setting === setting && cell[cost] !== null
      && !hiddenMixers.has(cell.mixer) && (selection.width === "all" || cell.width === Number(selection.width)));
    drawCost(plot, cells, cost);
  });
}

function drawCost(plot, cells, cost) {
  const { title, range, ticks, labels } = study.axes[cost];
  const traces = [frontier(cells, cost)];
  for (const index of shownMixers()) {
    const mine = cells.filter((cell) => cell.mixer === index).sort((a, b) => a.width - b.width);
    const good = mine.filter((cell) => cell.quality);
    const lost = mine.filter((cell) => cell.diverged);
    const { colour, dash } = mixerStyle(index);
    traces.push({
      type: "scatter", mode: "lines+markers", x: good.map((cell) => cell[cost]), y: good.map((cell) => cell.quality[0]),
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
  const better = study.quality.better === "higher" ? 1 : -1;
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
