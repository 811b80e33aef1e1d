// The legend, the controls, and redrawing when a selection, the colour scheme or the legend changes.

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
  shape.setAttribute("points", OUTLINES[mixerStyle(index).symbol].map((point) => point.join()).join(" "));
  shape.setAttribute("style", `fill: var(--mixer-${index % NUM_COLOURS})`);
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("symbol");
  svg.append(shape);
  return svg;
}

function drawLegend() {
  const buttons = study.mixers.map((mixer, index) => {
    const attributes = { type: "button", "aria-pressed": String(!hiddenMixers.has(index)), title: mixer.layers };
    const button = element("button", attributes, glyph(index), mixer.name);
    button.addEventListener("click", () => {
      if (!hiddenMixers.delete(index)) hiddenMixers.add(index);
      button.setAttribute("aria-pressed", String(!hiddenMixers.has(index)));
      drawAll();
    });
    return button;
  });
  document.getElementById("legend").replaceChildren(...buttons);
}

function setAllMixers(shown) {
  hiddenMixers.clear();
  if (!shown) study.mixers.forEach((_, index) => hiddenMixers.add(index));
  drawLegend();
  drawAll();
}

// A labelled list of choices; nothing is shown where there is nothing to choose.
function choice(form, name, label, options, initial, redraw) {
  const select = element("select", { name }, ...options.map(([value, text]) => element("option", { value }, text)));
  select.value = String(initial);
  select.addEventListener("change", redraw);
  const wrapper = element("label", {}, `${label} `, select);
  wrapper.hidden = options.length < 2;
  form.append(wrapper);
}

function settingOptions() {
  const each = study.settings.map((name, index) => [String(index), name]);
  return each.length > 1 ? [...each, ["all", "every setting"]] : each;
}

function widthOptions() {
  const each = study.widths.map((width) => [String(width), String(width)]);
  return each.length > 1 ? [["all", "all widths"], ...each] : each;
}

function selectionOf(formId) {
  return Object.fromEntries(new FormData(document.getElementById(formId)));
}

function buildControls() {
  const costs = document.getElementById("cost-controls");
  choice(costs, "setting", "Setting", settingOptions(), study.clearest_setting, redrawCosts);
  choice(costs, "width", "Width", widthOptions(), study.widths.length > 1 ? "all" : study.widths[0], redrawCosts);
  const curves = document.getElementById("curve-controls");
  choice(curves, "setting", "Setting", settingOptions(), study.clearest_setting, redrawCurves);
  choice(curves, "width", "Width", widthOptions(), study.widths.at(-1), redrawCurves);
  const rates = [["best", "the best of each"], ["all", "every one"]];
  choice(curves, "rate", "Learning rate", study.has_rate_choice ? rates : rates.slice(0, 1), "best", redrawCurves);
  const along = [["tokens", "tokens"], ["step", "steps"], ["seconds", "seconds"]];
  choice(curves, "along", "Against", along, "tokens", redrawCurves);
  for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
}

const redrawCosts = () => drawCosts(selectionOf("cost-controls"));
const redrawCurves = () => drawCurves(selectionOf("curve-controls"));

function drawAll() {
  drawWidths();
  redrawCosts();
  redrawCurves();
  drawTableBody();
}

for (const place of document.querySelectorAll(".glyph")) place.replaceWith(glyph(Number(place.dataset.mixer)));
buildControls();
drawLegend();
drawTableHead();
drawAll();
document.getElementById("show-all").addEventListener("click", () => setAllMixers(true));
document.getElementById("show-none").addEventListener("click", () => setAllMixers(false));
document.getElementById("run-filter").addEventListener("input", drawTableBody);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
