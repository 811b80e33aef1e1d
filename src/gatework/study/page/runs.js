// Every run: the table, its file, and what a row unfolds to. Columns come from Python by their keys; those of text
// are written here.

const nameOf = (run) => page.series[run.series].name;
const settingOf = (run) => page.settings[run.setting];

const TEXT_COLUMNS = new Map([
  [page.words.candidate, { unfolds: true, text: nameOf }],
  ["setting", { text: settingOf, sort: (run) => run.setting, kind: () => "setting" }],
  ["status", { text: (run) => run.status, kind: (run) => `status ${run.status}` }],
]);

// Columns of the file that are no numbers.
const FILE_TEXTS = new Map([
  ["run_id", (run) => run.id], [page.words.candidate, nameOf], [page.words.definition, (run) => run.definition], ["setting", settingOf],
  ["status", (run) => run.status], ["message", (run) => run.message],
]);

// What the filter reads: what a run is, in the columns before its results, and more.
function searchText(run, columns) {
  const shown = columns.slice(0, columns.findIndex(([key]) => key === "quality"));
  const texts = shown.map(([key, title]) => `${title} ${TEXT_COLUMNS.get(key)?.text(run) ?? run.texts[key]}`);
  return [...texts, settingOf(run), run.definition, run.id, run.message ?? ""].join(" ");
}

function runDetail(run, facts) {
  const known = factList([
    ["run", run.id], [page.words.definition, run.definition], ["status", run.status], ["message", run.message],
    ...facts.map(([key, title]) => [title, run.texts[key]]),
    ["started", run.started], ["environment", run.environment],
  ]);
  const command = document.querySelector(".command").textContent;
  return [
    element("div", {}, known, element("p", {}, "Part of the study made by"), element("pre", {}, command)),
    element("div", {}, element("p", {}, "Full spec"), element("pre", {}, run.spec)),
  ];
}

section("runs", {
  controls({ rows, columns, facts, file }) {
    makeTable({
      noun: "runs", rows, columns: columns.map(([key, title]) => ({ key, title, ...TEXT_COLUMNS.get(key) })),
      csv: file.map((key) => [key, FILE_TEXTS.get(key) ?? ((run) => run.values[key])]),
      search: (run) => searchText(run, columns), detail: (run) => runDetail(run, facts),
      sorting: { key: "quality", descending: page.quality.better === "higher" },
      filters: [
        { name: page.words.candidate, label: capitalised(page.words.candidate), of: nameOf },
        { name: "setting", label: "Setting", of: settingOf },
        { name: "status", label: "Status", of: (run) => run.status },
      ],
    });
  },
  draw: drawTable,
});
