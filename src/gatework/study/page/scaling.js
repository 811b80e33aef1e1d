// What was measured at growing points, one figure for each scaling: a panel per curve of it.

function drawScaling({ key, points, axis: along, panels: wanted, lines }) {
  const selection = selectionOf(`${key}-controls`);
  const jobs = settingsShown(selection).flatMap((setting) => wanted.map((panel, curve) => ({ setting, panel, curve })));
  panels(`${key}-panels`, jobs.map(({ setting, panel }) => settingTitle(panel.title, setting))).forEach((plot, index) => {
    const { setting, panel, curve } = jobs[index];
    const shown = page.cells.map((cell, position) => ({ ...cell, line: lines[position] })).filter((cell) => cell.setting === setting
      && cell.line.length && !hiddenSeries.has(cell.series) && isSizeShown(cell.size, selection));
    const traces = shown.map((cell) => scalingLine(cell, curve, panel.is_timed));
    const xaxis = { ...logAxis(along), tickvals: points, ticktext: points.map(String) };
    draw(plot, traces, layout(xaxis, logAxis(panel.axis), { height: 380 }));
  });
}

function scalingLine(cell, curve, isTimed) {
  const { colour, dash } = seriesStyle(cell.series);
  const known = cell.line.filter(({ values }) => values[curve]);
  return {
    type: "scatter", mode: "lines+markers", name: seriesName(cell.series),
    x: known.map(({ point }) => point), y: known.map(({ values }) => values[curve][0]),
    ...(isTimed ? { error_y: spreadBars(known.map(({ values }) => values[curve]), colour) } : {}),
    line: { color: colour, width: 1.8, dash }, marker: marker(cell.series, known.map(() => symbolSize(cell.size))),
    hoverinfo: "text", hovertext: known.map(({ hover }) => hoverText(hover)),
  };
}

section("scaling", {
  controls({ figures }) {
    for (const figure of figures) {
      const form = document.getElementById(`${figure.key}-controls`);
      const redraw = () => drawScaling(figure);
      choice(form, "setting", "Setting", settingOptions(), page.settings[page.clearest_setting], redraw);
      sizeChoice(form, largestSize(), redraw);
    }
  },
  draw({ figures }) {
    figures.forEach(drawScaling);
  },
});
