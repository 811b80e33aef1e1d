// Learning curves: every run faintly, the mean over its seeds strongly.

const CURVE_AXES = {
  tokens: { title: "training tokens", tickformat: "~s" },
  step: { title: "training steps", tickformat: "~s" },
  seconds: { title: "training time (seconds)", tickformat: "~s" },
};

function drawCurves(selection) {
  const jobs = settingsShown(selection).flatMap((setting) => ["quality", "loss"].map((metric) => ({ setting, metric })));
  const titles = jobs.map(({ setting, metric }) => {
    const title = `Validation ${metric === "quality" ? page.quality.name : "loss"}`;
    return page.settings.length > 1 ? `${title}, ${page.settings[setting]}` : title;
  });
  panels("curve-panels", titles).forEach((plot, index) => {
    const { setting, metric } = jobs[index];
    const runs = page.runs.filter((run) => run.setting === setting && !hiddenSeries.has(run.series)
      && (!selection.width || run.values.width === Number(selection.width))
      && (selection.rate === "all" || isBestRate(run)) && run.curve.step.length);
    drawCurve(plot, runs, metric, selection.along);
  });
}

function isBestRate(run) {
  return page.cells.some((cell) => cell.series === run.series && cell.setting === run.setting
    && cell.width === run.values.width && cell.learning_rate === run.values.learning_rate);
}

function drawCurve(plot, runs, metric, along) {
  const range = curveRange(runs, metric);
  const groups = new Map();
  for (const run of runs) {
    const key = [run.series, run.values.width, run.values.learning_rate].join();
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  const traces = [...groups.values()].flatMap((seeds) => [
    ...seeds.map((run) => seedLine(run, metric, along)),
    meanLine(seeds.filter((run) => run.status === "finished"), metric, along),
    ...seeds.filter((run) => run.status === "diverged").map((run) => endCross(run, metric, along, range)),
  ]).filter(Boolean);
  const { title, tickformat } = CURVE_AXES[along];
  const yaxis = axis(metric === "quality" ? `validation ${page.quality.title}` : "validation loss (lower is better)", range ? { range } : {});
  const more = metric === "quality" ? chanceLine("y") : {};
  draw(plot, traces, layout(axis(title, { tickformat, rangemode: "tozero" }), yaxis, more));
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

function widthStroke(run, strong) {
  const rank = page.widths.indexOf(run.values.width);
  return (strong ? 1.8 : 0.8) + (strong ? 0.7 : 0.2) * Math.min(rank, 4);
}

function curveName(run) {
  return `${page.series[run.series].name}, width ${run.values.width}`;
}

function curveHover(title, detail, along) {
  return `<b>${title}</b><br>${detail}<br>%{y:.4~g} at %{x:.4~s} ${along === "step" ? "steps" : along}<extra></extra>`;
}

// Names reach plotly as `meta`, which it inserts as they are: a template of theirs would be executed.
function seedLine(run, metric, along) {
  const { colour, dash } = seriesStyle(run.series);
  return {
    type: "scatter", mode: "lines", x: run.curve[along], y: run.curve[metric], opacity: 0.33,
    line: { color: colour, width: widthStroke(run, false), dash },
    meta: [plain(curveName(run)), `seed ${run.texts.seed}, learning rate ${run.texts.learning_rate}, ${run.status}`],
    hovertemplate: curveHover("%{meta[0]}", "%{meta[1]}", along),
  };
}

function meanLine(seeds, metric, along) {
  if (!seeds.length) return null;
  const common = seeds[0].curve.step.filter((step) => seeds.every((run) => run.curve.step.includes(step)));
  const mean = (name) => common.map((step) => {
    const values = seeds.map((run) => run.curve[name][run.curve.step.indexOf(step)]);
    return values.includes(null) ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
  });
  const { colour, dash } = seriesStyle(seeds[0].series);
  const count = seeds.length === 1 ? "one seed" : `mean of ${seeds.length} seeds`;
  return {
    type: "scatter", mode: "lines+markers", name: plain(curveName(seeds[0])), x: mean(along), y: mean(metric),
    line: { color: colour, width: widthStroke(seeds[0], true), dash },
    marker: marker(seeds[0].series, common.map((_, index) => (index === common.length - 1 ? widthSize(seeds[0].values.width) : 0))),
    meta: [plain(curveName(seeds[0])), `${count}, learning rate ${seeds[0].texts.learning_rate}`],
    hovertemplate: curveHover("%{meta[0]}", "%{meta[1]}", along),
  };
}

// Where a diverged run was seen last, held inside the axis.
function endCross(run, metric, along, range) {
  const last = run.curve[metric].findLastIndex((value) => value !== null);
  if (last < 0) return null;
  const y = range ? Math.min(Math.max(run.curve[metric][last], range[0]), range[1]) : run.curve[metric][last];
  return crosses([run.curve[along][last]], [y],
    [{ hover: [curveName(run), `seed ${run.texts.seed} diverged`, run.message ?? ""] }], run.series);
}
