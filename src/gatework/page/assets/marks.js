"use strict";
// What all figures share: colours and symbols, axes, panels, and saving a panel as a file. Everything is drawn
// from `page`, the page's one JSON value, and only the series that the legend has switched on.

const page = JSON.parse(document.getElementById("page-data").textContent);
const hiddenSeries = new Set();

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
const CONFIG = { responsive: true, displayModeBar: false, showTips: false };

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

// One colour and symbol per series over the whole page; both cycle, with lengths that have no common divisor.
function seriesStyle(index) {
  return {
    colour: cssColour(`--series-${index % NUM_COLOURS}`),
    symbol: SYMBOLS[index % SYMBOLS.length],
    dash: index < NUM_COLOURS ? "solid" : "dash",
  };
}

function marker(index, size) {
  const { colour, symbol } = seriesStyle(index);
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
    hoverlabel: {
      align: "left", bgcolor: cssColour("--surface"), bordercolor: cssColour("--line"),
      font: { family: FONT, size: 12.5, color: cssColour("--text") },
    },
    ...more,
  };
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

function crosses(x, y, cells, index) {
  return {
    type: "scatter", mode: "markers", x, y, cliponaxis: false,
    marker: { symbol: "x-thin", size: 9, line: { width: 2.2, color: seriesStyle(index).colour } },
    hoverinfo: "text", hovertext: cells.map((cell) => hoverText(cell.hover)),
  };
}

// Make `titles.length` panels in a container, keep those that are already there, and return their plots.
function panels(containerId, titles) {
  const container = document.getElementById(containerId);
  while (container.children.length > titles.length) {
    Plotly.purge(container.lastElementChild.querySelector(".plot"));
    container.lastElementChild.remove();
  }
  while (container.children.length < titles.length) container.append(emptyPanel());
  return titles.map((title, index) => {
    const figure = container.children[index];
    const plot = figure.querySelector(".plot");
    figure.querySelector("figcaption").textContent = title;
    figure.dataset.file = fileName(`${page.name} ${containerId.replace("-panels", "")} ${title}`);
    for (const button of figure.querySelectorAll(".save button")) {
      button.setAttribute("aria-label", `Save ${title} as ${button.textContent}`);
    }
    plot.setAttribute("aria-label", `${title}; its numbers are in the table below`);
    return plot;
  });
}

function emptyPanel() {
  const plot = element("div", { class: "plot", role: "img" });
  const buttons = ["PNG", "SVG"].map((format) => {
    const button = element("button", { type: "button" }, format);
    button.addEventListener("click", () => saveFigure(plot, format.toLowerCase()));
    return button;
  });
  return element("figure", {}, element("figcaption"), element("div", { class: "save" }, ...buttons), plot);
}

function fileName(text) {
  return text.normalize("NFKD").replace(/[^A-Za-z0-9=.]+/g, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 120) || "figure";
}

// A file has to explain itself: it gets a title, a legend, and a background that text can be read on.
function saveFigure(plot, format) {
  const figure = plot.closest("figure");
  const named = new Set();
  const data = plot.data.map((trace) => {
    const first = trace.name !== undefined && trace.x.length > 0 && !named.has(trace.name);
    if (first) named.add(trace.name);
    return { ...trace, showlegend: first };
  });
  const { l, r, t, b } = plot.layout.margin;
  const width = Math.max(plot.clientWidth, 560);
  const layout = {
    ...plot.layout, width, height: plot.layout.height + 60 + 11 * named.size, showlegend: named.size > 0,
    paper_bgcolor: cssColour("--surface"), plot_bgcolor: cssColour("--surface"),
    margin: { l, r, t: t + 40, b },
    title: { text: plain(figure.querySelector("figcaption").textContent), font: { size: 15 }, x: 0.5, xanchor: "center" },
    legend: { orientation: "h", x: 0.5, xanchor: "center", y: -0.22, yanchor: "top", itemsizing: "constant" },
  };
  return Plotly.downloadImage({ data, layout, config: { staticPlot: true } },
    { format, filename: figure.dataset.file, width, height: layout.height, scale: format === "png" ? 3 : 1 });
}

// Draw, or say that there is nothing to draw instead of showing an empty grid with made-up ticks.
function draw(plot, traces, wanted) {
  const empty = !traces.some((trace) => trace.x.length);
  const nothing = {
    text: "nothing was measured in this selection", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5,
    font: { size: 13, color: cssColour("--muted") },
  };
  const blank = {
    xaxis: { ...wanted.xaxis, visible: false }, yaxis: { ...wanted.yaxis, visible: false },
    shapes: [], annotations: [nothing], height: 140,
  };
  Plotly.react(plot, traces, empty ? { ...wanted, ...blank } : wanted, CONFIG);
}

function shownSeries() {
  return page.series.map((_, index) => index).filter((index) => !hiddenSeries.has(index));
}

function seriesName(index) {
  return plain(page.series[index].name);
}
