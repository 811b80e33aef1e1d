// The page of one study: its controls, its columns, and what is redrawn when.

const COST_NAMES = [
  "parameters", "state_bytes", "published_state_bytes", "activation_bytes", "flops_per_token", "training_flops", "training_tokens",
  "tokens_per_second", "seconds",
];
const METRIC_NAMES = ["quality", "loss", "validation_quality", "validation_loss"];
const nameOf = (run) => page.series[run.series].name;
const settingOf = (run) => page.settings[run.setting];

const COLUMNS = [
  { key: "mixer", title: "mixer", unfolds: true, text: nameOf },
  { key: "setting", title: "setting", text: settingOf, sort: (run) => run.setting, kind: () => "setting" },
  { key: "width", title: "width" },
  { key: "learning_rate", title: "learning rate" },
  { key: "seed", title: "seed" },
  { key: "status", title: "status", text: (run) => run.status, kind: (run) => `status ${run.status}` },
  { key: "quality", title: page.quality.name },
  { key: "loss", title: "loss" },
  ...["ar_hits", "other"].map((name) => ({ key: `perplexity ${name}`, title: `perplexity ${name === "other" ? "other" : "AR hits"}` })),
  { key: "parameters", title: "parameters" },
  { key: "state_bytes", title: "state" },
  { key: "published_state_bytes", title: "state as published" },
  { key: "activation_bytes", title: "memory" },
  { key: "training_flops", title: "compute" },
  { key: "tokens_per_second", title: "tokens/s training" },
  ...page.decode_contexts.slice(-1).map((context) => ({ key: `decode_${context}`, title: `tokens/s decoding at ${context}` })),
  { key: "seconds", title: "time" },
].filter(({ key }) => (key !== "setting" || page.settings.length > 1)
  && (key !== "published_state_bytes" || page.has_published_state)
  && (!key.startsWith("perplexity ") || page.slice_columns.includes(key)));

const CSV = [
  ["run_id", (run) => run.id], ["mixer", nameOf], ["layers", (run) => run.layers], ["setting", settingOf],
  ...["width", "learning_rate", "seed"].map((key) => [key, (run) => run.values[key]]),
  ["status", (run) => run.status],
  ...[...METRIC_NAMES, ...COST_NAMES, ...page.slice_columns].map((key) => [key, (run) => run.values[key]]),
  ...page.decode_contexts.map((context) => [`decoding tokens_per_second at ${context}`, (run) => run.values[`decode_${context}`]]),
  ["message", (run) => run.message],
];

function searchText(run) {
  const columns = COLUMNS.slice(0, COLUMNS.findIndex(({ key }) => key === "quality")).map(({ key, title, text }) => `${title} ${text ? text(run) : run.texts[key]}`);
  return [...columns, settingOf(run), run.layers, run.id, run.message ?? ""].join(" ");
}

function runDetail(run) {
  const facts = factList([
    ["run", run.id], ["layers", run.layers], ["status", run.status], ["message", run.message],
    [`validation ${page.quality.name}`, run.texts.validation_quality], ["validation loss", run.texts.validation_loss],
    ...page.slice_columns.map((name) => [name.replace("_", " "), run.texts[name]]),
    ["compute per token", run.texts.flops_per_token], ["training tokens", run.texts.training_tokens],
    ...page.decode_contexts.map((context) => [`decoding tokens/s at ${context}`, run.texts[`decode_${context}`]]),
    ["started", run.started], ["environment", run.environment],
  ]);
  const command = document.querySelector(".command").textContent;
  return [
    element("div", {}, facts, element("p", {}, "Part of the study made by"), element("pre", {}, command)),
    element("div", {}, element("p", {}, "Full spec"), element("pre", {}, run.spec)),
  ];
}

function buildControls() {
  const form = (id) => document.getElementById(id);
  if (page.published.length) toggle(form("width-controls"), "published", "Published results", redrawWidths);
  const clearest = page.settings[page.clearest_setting];
  const gap = form("gap-controls");
  if (gap) {
    choice(gap, "setting", "Setting", settingOptions(), clearest, redrawGap);
    choice(gap, "width", "Width", widthOptions(), page.widths.at(-1), redrawGap);
    if (page.gap.published.length) toggle(gap, "published", "Published shares", redrawGap);
  }
  choice(form("cost-controls"), "setting", "Setting", settingOptions(), clearest, redrawCosts);
  choice(form("cost-controls"), "width", "Width", widthOptions(), page.widths.length > 1 ? "" : page.widths[0], redrawCosts);
  const counts = [["state", "as decoding carries it"], ["published_state", "as published"]];
  choice(form("cost-controls"), "state", "State", page.has_published_state ? counts : counts.slice(0, 1), "state", redrawCosts);
  const generation = form("generation-controls");
  if (generation) {
    choice(generation, "setting", "Setting", settingOptions(), clearest, redrawGeneration);
    choice(generation, "width", "Width", widthOptions(), page.widths.at(-1), redrawGeneration);
  }
  const curves = form("curve-controls");
  choice(curves, "setting", "Setting", settingOptions(), clearest, redrawCurves);
  choice(curves, "width", "Width", widthOptions(), page.widths.at(-1), redrawCurves);
  const rates = [["best", "the chosen ones"], ["all", "every one"]];
  choice(curves, "rate", "Learning rate", page.has_rate_choice ? rates : rates.slice(0, 1), "best", redrawCurves);
  const along = [["tokens", "tokens"], ["step", "steps"], ["seconds", "seconds"]];
  choice(curves, "along", "Against", along, "tokens", redrawCurves);
}

const redrawWidths = () => drawWidths(selectionOf("width-controls"));
const redrawGap = () => drawGap(selectionOf("gap-controls"));
const redrawCosts = () => drawCosts(selectionOf("cost-controls"));
const redrawGeneration = () => drawGeneration(selectionOf("generation-controls"));
const redrawCurves = () => drawCurves(selectionOf("curve-controls"));

function drawAll() {
  redrawWidths();
  if (document.getElementById("gap-controls")) redrawGap();
  if (document.getElementById("prediction-panels")) drawPrediction();
  redrawCosts();
  if (document.getElementById("generation-controls")) redrawGeneration();
  redrawCurves();
  drawTable();
}

buildLegend();
buildControls();
makeTable({
  noun: "runs", rows: page.runs, columns: COLUMNS, csv: CSV, search: searchText, detail: runDetail,
  sorting: { key: "quality", descending: page.quality.better === "higher" },
  filters: [
    { name: "mixer", label: "Mixer", of: nameOf },
    { name: "setting", label: "Setting", of: settingOf },
    { name: "status", label: "Status", of: (run) => run.status },
  ],
});
startPage();
