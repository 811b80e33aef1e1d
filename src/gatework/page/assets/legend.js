// The legend: one button per series (what is compared), which hides and shows it in all figures and the table.

// Outlines in a 16 x 16 box that look like plotly's symbols of the same name.
function polygon(corners, turn, radius = 6.6) {
  return Array.from({ length: corners }, (_, index) => {
    const angle = (2 * Math.PI * index) / corners + turn;
    const size = Array.isArray(radius) ? radius[index % radius.length] : radius;
    return [8 + size * Math.cos(angle), 8 + size * Math.sin(angle)];
  });
}
const UP = -Math.PI / 2;
const OUTLINES = {
  circle: polygon(36, 0, 5.8),
  square: [[3, 3], [13, 3], [13, 13], [3, 13]],
  diamond: polygon(4, 0, 7),
  "triangle-up": polygon(3, UP, 7),
  "triangle-down": polygon(3, -UP, 7),
  star: polygon(10, UP, [7.4, 3.2]),
  cross: [[6, 2], [10, 2], [10, 6], [14, 6], [14, 10], [10, 10], [10, 14], [6, 14], [6, 10], [2, 10], [2, 6], [6, 6]],
  hexagon: polygon(6, UP),
  "triangle-left": polygon(3, Math.PI, 7),
  pentagon: polygon(5, UP),
  bowtie: [[2, 3], [8, 8], [14, 3], [14, 13], [8, 8], [2, 13]],
  "triangle-right": polygon(3, 0, 7),
  hourglass: [[3, 2], [13, 2], [8, 8], [13, 14], [3, 14], [8, 8]],
};

function glyph(index) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const shape = document.createElementNS(space, "polygon");
  shape.setAttribute("points", OUTLINES[seriesStyle(index).symbol].map((point) => point.join()).join(" "));
  shape.setAttribute("style", `fill: var(--series-${index % NUM_COLOURS})`);
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("symbol");
  svg.append(shape);
  return svg;
}

function drawLegend() {
  const buttons = page.series.map((series, index) => {
    const attributes = { type: "button", "aria-pressed": String(!hiddenSeries.has(index)), title: series.about };
    const button = element("button", attributes, glyph(index), series.name);
    button.addEventListener("click", () => {
      if (!hiddenSeries.delete(index)) hiddenSeries.add(index);
      button.setAttribute("aria-pressed", String(!hiddenSeries.has(index)));
      drawAll();
      rememberView();
    });
    return button;
  });
  document.getElementById("legend").replaceChildren(...buttons);
}

function setHiddenSeries(indices) {
  hiddenSeries.clear();
  for (const index of indices) hiddenSeries.add(index);
  drawLegend();
}

function buildLegend() {
  drawLegend();
  const all = page.series.map((_, index) => index);
  for (const [id, hidden] of [["show-all", []], ["show-none", all]]) {
    document.getElementById(id).addEventListener("click", () => { setHiddenSeries(hidden); drawAll(); rememberView(); });
  }
  inView("hide", () => [...hiddenSeries].sort((a, b) => a - b).map((index) => page.series[index].name),
    (names) => setHiddenSeries(all.filter((index) => names.includes(page.series[index].name))));
}
