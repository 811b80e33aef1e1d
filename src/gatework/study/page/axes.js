// What the pages of studies share: axes, symbols, and the choices of setting and size.

function qualityAxis(more = {}) {
  return axis(page.quality.title, { range: page.quality.range, ...more });
}

// Level of guessing, where it lies on the axis at all; `along` is the axis that shows quality.
function chanceLine(along) {
  const { chance, range, chance_text: text } = page.quality;
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
  const [low, high] = page.quality.range;
  return page.quality.better === "higher" ? low + 0.02 * (high - low) : high - 0.02 * (high - low);
}

// An axis that Python described: its range, as exponents of ten, and its ticks.
function logAxis({ title, range, ticks, labels }) {
  return axis(title, { type: "log", range, tickvals: ticks, ticktext: labels, ticklabeloverflow: "allow" });
}

// The larger of what is compared has the larger symbol.
function symbolSize(size) {
  return 10 + Math.min(3 * page.sizes.indexOf(size), 12);
}

// What a paper reports for the same candidate: hollow, so that nobody takes it for a measurement of this study.
function publishedMarker(index, size) {
  const look = marker(index, size);
  return { ...look, symbol: `${look.symbol}-open`, line: { color: look.color, width: 1.6 } };
}

// Values are names; the empty one, which no name can be, stands for all of them.
function settingOptions() {
  const each = page.settings.map((name) => [name, name]);
  return each.length > 1 ? [...each, ["", "every setting"]] : each;
}

function sizeOptions() {
  const each = page.sizes.map((size) => [String(size), String(size)]);
  return each.length > 1 ? [["", `all ${page.words.sizes}`], ...each] : each;
}

// The control of the size is called as the task calls it: a link may say `cost.size=64`.
function sizeChoice(form, initial, redraw) {
  choice(form, page.words.size, capitalised(page.words.size), sizeOptions(), initial, redraw);
}

function isSizeShown(size, selection) {
  const chosen = selection[page.words.size];
  return !chosen || size === Number(chosen);
}

// Every size to begin with, or the largest.
function everySize() {
  return page.sizes.length > 1 ? "" : page.sizes[0] ?? "";
}

function largestSize() {
  return page.sizes.at(-1);
}

function capitalised(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function settingsShown(selection) {
  return page.settings.map((_, index) => index).filter((index) => !selection.setting || page.settings[index] === selection.setting);
}

// Titles of panels that are there for each setting: the setting is in them if there are several.
function settingTitle(title, setting) {
  return page.settings.length > 1 ? `${title}, ${page.settings[setting]}` : title;
}
