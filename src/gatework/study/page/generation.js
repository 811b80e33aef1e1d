// Generation: how fast tokens come, and what is carried between them, against the length of the context.

const GENERATION_TITLES = {
  speed: "Generation: tokens per second against context length", carried: "Decoding state against context length",
};

function drawGeneration(selection) {
  const jobs = settingsShown(selection).flatMap((setting) => Object.keys(GENERATION_TITLES).map((what) => ({ setting, what })));
  const titles = jobs.map(({ setting, what }) =>
    page.settings.length > 1 ? `${GENERATION_TITLES[what]}, ${page.settings[setting]}` : GENERATION_TITLES[what]);
  panels("generation-panels", titles).forEach((plot, index) => {
    const { setting, what } = jobs[index];
    const cells = page.cells.filter((cell) => cell.setting === setting && cell.decoding.length
      && !hiddenSeries.has(cell.series) && (!selection.width || cell.width === Number(selection.width)));
    drawGenerated(plot, cells, what);
  });
}

function drawGenerated(plot, cells, what) {
  const traces = cells.map((cell) => {
    const { colour, dash } = seriesStyle(cell.series);
    const points = cell.decoding.filter((point) => what === "speed" || point.carried > 0);
    return {
      type: "scatter", mode: "lines+markers", name: seriesName(cell.series),
      x: points.map((point) => point.context), y: points.map((point) => (what === "speed" ? point.speed[0] : point.carried)),
      ...(what === "speed" ? { error_y: spreadBars(points.map((point) => point.speed), colour) } : {}),
      line: { color: colour, width: 1.8, dash }, marker: marker(cell.series, points.map(() => widthSize(cell.width))),
      hoverinfo: "text", hovertext: points.map((point) => hoverText(point.hover)),
    };
  });
  const logAxis = ({ title, range, ticks, labels }) =>
    axis(title, { type: "log", range, tickvals: ticks, ticktext: labels, ticklabeloverflow: "allow" });
  const { context, [what]: vertical } = page.decoding_axes;
  const xaxis = { ...logAxis(context), tickvals: page.decode_contexts, ticktext: page.decode_contexts.map(String) };
  draw(plot, traces, layout(xaxis, logAxis(vertical), { height: 380 }));
}
