// What both pages of studies share: the axis of quality, and the choices of setting and width.

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

function widthSize(width) {
  return 10 + Math.min(3 * page.widths.indexOf(width), 12);
}

// Values are names; the empty one, which no name can be, stands for all of them.
function settingOptions() {
  const each = page.settings.map((name) => [name, name]);
  return each.length > 1 ? [...each, ["", "every setting"]] : each;
}

function widthOptions() {
  const each = page.widths.map((width) => [String(width), String(width)]);
  return each.length > 1 ? [["", "all widths"], ...each] : each;
}

function settingsShown(selection) {
  return page.settings.map((_, index) => index).filter((index) => !selection.setting || page.settings[index] === selection.setting);
}
