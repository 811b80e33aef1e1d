// Learning curves: every run faintly, the mean over its seeds strongly.

function drawCurves({ groups, along: choices }) {
  const selection = selectionOf("curves-controls");
  const [along, unit, title] = choices.find(([key]) => key === selection.along);
  const jobs = settingsShown(selection).flatMap((setting) => ["quality", "loss"].map((metric) => ({ setting, metric })));
  const titles = jobs.map(({ setting, metric }) => settingTitle(`Validation ${metric === "quality" ? page.quality.name : "loss"}`, setting));
  panels("curves-panels", titles).forEach((plot, index) => {
    const { setting, metric } = jobs[index];
    const shown = groups.filter((group) => group.setting === setting && !hiddenSeries.has(group.series) && isSizeShown(group.size, selection)
      && (selection.rate === "all" || group.chosen))
      .map((group) => ({ ...group, seeds: group.seeds.filter(({ curve }) => curve.step.length) }));
    drawCurve(plot, shown, { metric, along, unit, title });
  });
}

function drawCurve(plot, groups, look) {
  const { metric, title } = look;
  const runs = groups.flatMap(({ seeds }) => seeds);
  const range = curveRange(runs, metric);
  // As long as two symbols, on any screen.
  const reach = (32 / Math.max(plot.clientWidth - 90, 100)) * Math.max(0, ...runs.flatMap(({ curve }) => curve[look.along]));
  const traces = groups.flatMap((group) => {
    const finished = group.seeds.filter(({ status }) => status === "finished");
    const mean = finished.length ? meanCurve(finished, look) : null;
    return [
      ...group.seeds.map((run) => seedLine(group, run, look)),
      mean && meanLine(group, mean, look),
      mean && group.improving && metric === "quality" && openEnd(group, mean, reach, range),
      ...group.seeds.filter(({ status }) => status === "diverged").map((run) => endCross(group, run, look, range)),
    ];
  }).filter(Boolean);
  const yaxis = axis(metric === "quality" ? `validation ${page.quality.title}` : "validation loss (lower is better)", range ? { range } : {});
  const more = metric === "quality" ? chanceLine("y") : {};
  draw(plot, traces, layout(axis(title, { tickformat: "~s", rangemode: "tozero" }), yaxis, more));
}

// The axis follows the runs that finished: one that blew up would flatten all others.
function curveRange(runs, metric) {
  if (metric === "quality" && page.quality.bounded) return page.quality.range;
  const finished = runs.filter((run) => run.status === "finished");
  const values = (finished.length ? finished : runs).flatMap((run) => run.curve[metric]).filter((value) => value !== null);
  if (!values.length) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = 0.05 * (high - low) || 0.5;
  return [low - pad, high + pad];
}

function strokeWidth(size, strong) {
  const rank = page.sizes.indexOf(size);
  return (strong ? 1.8 : 0.8) + (strong ? 0.7 : 0.2) * Math.min(rank, 4);
}

// Names reach plotly as `meta`, which it inserts as they are: a template of theirs would be executed.
function curveTexts(lines, unit) {
  const rest = lines.map((_, index) => (index ? `%{meta[${index}]}` : "<b>%{meta[0]}</b>")).join("<br>");
  return { meta: lines.map(plain), hovertemplate: `${rest}<br>%{y:.4~g} at %{x:.4~s} ${unit}<extra></extra>` };
}

function seedLine(group, run, { metric, along, unit }) {
  const { colour, dash } = seriesStyle(group.series);
  return {
    type: "scatter", mode: "lines", x: run.curve[along], y: run.curve[metric], opacity: 0.33,
    line: { color: colour, width: strokeWidth(group.size, false), dash },
    ...curveTexts([group.title, `${run.seed}, ${group.rate}, ${run.status}`], unit),
  };
}

// The mean over the seeds, as far as all of them were trained.
function meanCurve(seeds, { metric, along }) {
  const common = seeds[0].curve.step.filter((step) => seeds.every(({ curve }) => curve.step.includes(step)));
  const mean = (name) => common.map((step) => {
    const values = seeds.map(({ curve }) => curve[name][curve.step.indexOf(step)]);
    return values.includes(null) ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
  });
  return { x: mean(along), y: mean(metric), count: seeds.length };
}

function meanLine(group, { x, y, count }, { unit }) {
  const { colour, dash } = seriesStyle(group.series);
  const of = count === 1 ? "one seed" : `mean of ${count} seeds`;
  const lines = [group.title, `${of}, ${group.rate}`, ...(group.improving ? ["still improving when its budget ended"] : [])];
  return {
    type: "scatter", mode: "lines+markers", name: plain(group.title), x, y,
    line: { color: colour, width: strokeWidth(group.size, true), dash },
    marker: marker(group.series, x.map((_, index) => (index === x.length - 1 ? symbolSize(group.size) : 0))),
    ...curveTexts(lines, unit),
  };
}

// An arrow that leads on from where the mean was still improving, in the direction of its last part, inside the axis.
function openEnd(group, { x, y }, reach, [low, high]) {
  const last = y.findLastIndex((value) => value !== null);
  if (last < 1 || y[last - 1] === null || x[last] === x[last - 1]) return null;
  const slope = (y[last] - y[last - 1]) / (x[last] - x[last - 1]);
  const end = Math.min(Math.max(y[last] + slope * reach, low), high);
  const { colour } = seriesStyle(group.series);
  return {
    type: "scatter", mode: "lines+markers", x: [x[last], x[last] + reach], y: [y[last], end], hoverinfo: "skip", cliponaxis: false,
    line: { color: colour, width: 1.6, dash: "dot" },
    marker: { symbol: "arrow", angleref: "previous", size: [0, symbolSize(group.size) + 1], opacity: 1, color: colour, line: { color: cssColour("--surface"), width: 1 } },
  };
}

// Where a diverged run was seen last, held inside the axis.
function endCross(group, run, { metric, along }, range) {
  const last = run.curve[metric].findLastIndex((value) => value !== null);
  if (last < 0) return null;
  const y = range ? Math.min(Math.max(run.curve[metric][last], range[0]), range[1]) : run.curve[metric][last];
  return crosses([run.curve[along][last]], [y],
    [{ hover: [group.title, `${run.seed} diverged`, run.message ?? ""] }], group.series);
}

section("curves", {
  controls(data) {
    const form = document.getElementById("curves-controls");
    const redraw = () => drawCurves(data);
    choice(form, "setting", "Setting", settingOptions(), page.settings[page.clearest_setting], redraw);
    sizeChoice(form, largestSize(), redraw);
    const rates = [["best", "the chosen ones"], ["all", "every one"]];
    choice(form, "rate", "Learning rate", data.has_rate_choice ? rates : rates.slice(0, 1), "best", redraw);
    choice(form, "along", "Against", data.along.map(([key, name]) => [key, name]), data.along[0][0], redraw);
  },
  draw: drawCurves,
});
