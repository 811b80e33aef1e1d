// Quality against each cost.

function drawCosts({ places, panels: known }) {
  const selection = selectionOf("cost-controls");
  const costs = places.map(({ name, options }) => selection[name] ?? options[0][0]);
  const jobs = settingsShown(selection).flatMap((setting) => costs.map((cost) => ({ setting, cost: known[cost] })));
  panels("cost-panels", jobs.map(({ setting, cost }) => settingTitle(cost.title, setting))).forEach((plot, index) => {
    const { setting, cost } = jobs[index];
    const points = page.cells.map((cell, position) => ({ ...cell, cost: cost.values[position] })).filter((cell) => cell.setting === setting
      && cell.cost !== null && !hiddenSeries.has(cell.series) && isSizeShown(cell.size, selection));
    drawCost(plot, points, cost);
  });
}

function drawCost(plot, cells, { axis: cheapness, is_rate: isRate }) {
  const traces = [frontier(cells, isRate)];
  for (const index of shownSeries()) {
    const mine = cells.filter((cell) => cell.series === index).sort((a, b) => a.size - b.size);
    const good = mine.filter((cell) => cell.quality);
    const lost = mine.filter((cell) => cell.diverged);
    const { colour, dash } = seriesStyle(index);
    traces.push({
      type: "scatter", mode: "lines+markers", name: seriesName(index), x: good.map((cell) => cell.cost[0]), y: good.map((cell) => cell.quality[0]),
      error_y: spreadBars(good.map((cell) => cell.quality), colour),
      ...(isRate ? { error_x: spreadBars(good.map((cell) => cell.cost), colour) } : {}),
      line: { color: colour, width: 1.2, dash }, marker: marker(index, good.map((cell) => symbolSize(cell.size))),
      hoverinfo: "text", hovertext: good.map((cell) => hoverText(cell.hover)),
    }, crosses(lost.map((cell) => cell.cost[0]), lost.map(badEdge), lost, index));
  }
  draw(plot, traces, layout(logAxis(cheapness), qualityAxis(), chanceLine("y")));
}

// The steps along which no shown point is both better and cheaper; a higher rate is cheaper.
function frontier(cells, isRate) {
  const cheaper = isRate ? -1 : 1;
  const better = page.quality.better === "higher" ? 1 : -1;
  const points = cells.filter((cell) => cell.quality).sort((a, b) => cheaper * (a.cost[0] - b.cost[0]));
  const kept = [];
  for (const cell of points) {
    if (!kept.length || better * (cell.quality[0] - kept.at(-1).quality[0]) > 0) kept.push(cell);
  }
  return {
    type: "scatter", mode: "lines", hoverinfo: "skip", x: kept.map((cell) => cell.cost[0]),
    y: kept.map((cell) => cell.quality[0]), line: { shape: "hv", width: 5, color: cssColour("--frontier") },
  };
}

section("costs", {
  controls(data) {
    const form = document.getElementById("cost-controls");
    const redraw = () => drawCosts(data);
    choice(form, "setting", "Setting", settingOptions(), page.settings[page.clearest_setting], redraw);
    sizeChoice(form, everySize(), redraw);
    for (const { name, label, options } of data.places) {
      if (options.length > 1) choice(form, name, label, options, options[0][0], redraw);
    }
  },
  draw: drawCosts,
});
