// The figures of the simulator of neighbourhood attention: trade-off, agreement with the paper, tiles visited.

// Panels with one pair of tiles name their strides; more would be a thicket.
function tradeTraces(points, series, named) {
  const mine = points.filter((point) => point.series === series);
  const front = mine.filter((point) => point.front);
  const others = mine.filter((point) => !point.front);
  const { colour, dash } = seriesStyle(series);
  const of = (some, more) => ({
    type: "scatter", mode: "markers", name: seriesName(series), x: some.map((point) => point.x), y: some.map((point) => point.y),
    hoverinfo: "text", hovertext: some.map((point) => hoverText(point.hover)), cliponaxis: false, ...more,
  });
  const perfect = mine.filter((point) => point.perfect);
  return [
    of(others, { marker: { ...marker(series, 6), opacity: 0.55 } }),
    of(front, {
      mode: named ? "lines+markers+text" : "lines+markers", line: { color: colour, width: 2, dash, shape: "hv" }, marker: marker(series, 10),
      text: front.map((point) => point.label), textposition: front.map((_, index) => (index ? "top left" : "bottom right")),
      textfont: { size: 11.5, color: cssColour("--text") },
    }),
    of(perfect, { name: undefined, marker: { symbol: "circle-open", size: 17, color: cssColour("--text"), line: { width: 1.6, color: cssColour("--text") } } }),
  ];
}

function horizontal(y, text) {
  const colour = cssColour("--muted");
  return {
    shapes: [{ type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: colour, width: 1.5, dash: "dot" } }],
    annotations: [{ text, showarrow: false, xref: "paper", x: 0, xanchor: "left", y, yanchor: "bottom", font: { size: 11.5, color: colour } }],
  };
}

function drawTrade(selection) {
  const chosen = page.panels.map((_, index) => index).filter((index) => !selection.panel || index === Number(selection.panel));
  panels("trade-panels", chosen.map((index) => page.panels[index].title)).forEach((plot, place) => {
    const { axis: products, ideal } = page.panels[chosen[place]];
    const points = page.points.filter((point) => point.panel === chosen[place] && !hiddenSeries.has(point.series));
    const all = [...new Set(points.map((point) => point.series))];
    const traces = all.flatMap((series) => tradeTraces(points, series, all.length === 1));
    const xaxis = axis(products.title, { type: "log", range: products.range, tickvals: products.ticks, ticktext: products.labels });
    const top = 1.13 * Math.max(ideal, ...points.map((point) => point.y));
    draw(plot, traces, layout(xaxis, axis("speed-up of the operator", { range: [0, top], ticksuffix: "×" }), horizontal(ideal, `ideal ${ideal.toFixed(2)}×`)));
  });
}

const PAPER = [
  ["Against the paper's simulator", "simulated in the paper", [["paper_end_to_end", "end_to_end", "every step sparse"], ["paper_end_to_end_partial", "end_to_end_partial", "first steps dense"]]],
  ["Against the paper's measurements on a B200", "measured in the paper", [["paper_measured", "end_to_end", "every step sparse"]]],
];

function drawPaper() {
  const rows = page.rows.filter((row) => row.values.paper_end_to_end !== null && !hiddenSeries.has(row.series));
  if (document.getElementById("figure-paper").hidden) return;
  panels("paper-panels", PAPER.map(([title]) => title)).forEach((plot, index) => {
    const [, across, pairs] = PAPER[index];
    const traces = pairs.flatMap(([theirs, ours, steps], kind) => shownSeries().map((series) => {
      const mine = rows.filter((row) => row.series === series && row.values[theirs] !== null);
      const looks = marker(series, kind ? 8 : 10);
      if (kind) looks.symbol += "-open";
      if (kind) looks.line = { width: 1.6, color: looks.color };
      return {
        type: "scatter", mode: "markers", name: `${seriesName(series)}, ${steps}`, x: mine.map((row) => row.values[theirs]), y: mine.map((row) => row.values[ours]),
        marker: looks, hoverinfo: "text", cliponaxis: false,
        hovertext: mine.map((row) => hoverText([`${caseOf(row)}, stride ${row.texts.stride}`, steps, `here ${row.texts[ours]}, ${across} ${row.texts[theirs]}`])),
      };
    }));
    const values = traces.flatMap((trace) => [...trace.x, ...trace.y]);
    const range = [Math.min(...values) - 0.06, Math.max(...values) + 0.06];
    const diagonal = { type: "line", layer: "below", x0: range[0], y0: range[0], x1: range[1], y1: range[1], line: { color: cssColour("--muted"), width: 1.5, dash: "dot" } };
    draw(plot, traces, layout(axis(across, { range, ticksuffix: "×" }), axis("simulated here", { range, ticksuffix: "×" }), { shapes: [diagonal] }));
  });
}

// Where tiles of an axis begin, and where the last one ends.
function edges(tokens, size) {
  const found = [];
  for (let start = 0; start < tokens; start += size) found.push(start);
  return [...found, tokens];
}

const SKIPPED = 0, MASKED = 1, FULL = 2;
const VISIT_NAMES = ["skipped", "visited with a mask", "visited, no mask needed"];

function visitOf([first, stop, fullFirst, fullStop], tile) {
  if (tile < first || tile >= stop) return SKIPPED;
  return tile >= fullFirst && tile < fullStop ? FULL : MASKED;
}

function tileMap(x, y, z, hover) {
  const colours = [cssColour("--chip"), cssColour("--series-8"), cssColour("--series-5")];
  const colorscale = colours.flatMap((colour, index) => [[index / 3, colour], [(index + 1) / 3, colour]]);
  return [{
    type: "heatmap", x, y, z, zmin: -0.5, zmax: 2.5, colorscale, showscale: false, xgap: 1, ygap: 1, hoverinfo: "text",
    hovertext: z.map((row, i) => row.map((kind, j) => hoverText([VISIT_NAMES[kind], ...hover(i, j)]))),
  }];
}

const span = (edge, index) => `${edge[index]} to ${edge[index + 1] - 1}`;

function outline(x0, x1, y0, y1) {
  return { type: "rect", x0, x1, y0, y1, line: { color: cssColour("--text"), width: 2 } };
}

function placeOf(axes, where) {
  return axes.map(({ visits }) => {
    const size = visits.map(([first, stop]) => stop - first);
    return { worst: size.indexOf(Math.max(...size)), first: 0, middle: visits.length >> 1, last: visits.length - 1 }[where];
  });
}

// Keys of the last two axes, and what the chosen tile of queries visits there.
function drawPlane(plot, axes, place) {
  const [down, right] = axes.slice(-2);
  const [i, j] = place.slice(-2);
  const [x, y] = [edges(right.tokens, right.kv_tile), edges(down.tokens, down.kv_tile)];
  const kinds = (one, at) => edges(one.tokens, one.kv_tile).slice(1).map((_, tile) => visitOf(one.visits[at], tile));
  const others = axes.slice(0, -2).some(({ visits }, axis) => visits[place[axis]][0] < visits[place[axis]][2] || visits[place[axis]][3] < visits[place[axis]][1]);
  const z = kinds(down, i).map((row) => kinds(right, j).map((column) => Math.min(row, column)));
  const box = outline(j * right.q_tile, Math.min((j + 1) * right.q_tile, right.tokens), i * down.q_tile, Math.min((i + 1) * down.q_tile, down.tokens));
  const note = others ? ["some of them with a mask for the first axis"] : [];
  draw(plot, tileMap(x, y, z, (row, column) => [`keys ${span(y, row)} of axis ${axes.length - 2}`, `keys ${span(x, column)} of axis ${axes.length - 1}`, ...note]),
    layout(axis(`keys of axis ${axes.length - 1}`, { showgrid: false }), axis(`keys of axis ${axes.length - 2}`, { showgrid: false, autorange: "reversed" }), { shapes: [box] }));
}

function drawAxis(plot, one, number, at) {
  const [x, y] = [edges(one.tokens, one.kv_tile), edges(one.tokens, one.q_tile)];
  const z = one.visits.map((visit) => x.slice(1).map((_, tile) => visitOf(visit, tile)));
  draw(plot, tileMap(x, y, z, (row, column) => [`queries ${span(y, row)}`, `keys ${span(x, column)}`]),
    layout(axis(`keys of axis ${number}`, { showgrid: false }), axis(`queries of axis ${number}`, { showgrid: false, autorange: "reversed" }),
      { shapes: [outline(0, one.tokens, y[at], y[at + 1])] }));
}

function planeTitle(axes, place) {
  const [number, tokens] = [axes.length - 2, axes.slice(-2)];
  const queries = tokens.map(({ tokens: all, q_tile: size }, index) => span(edges(all, size), place[number + index])).join(" × ");
  const [first] = axes;
  if (axes.length < 3) return `Queries ${queries}`;
  const [start, stop] = first.visits[place[0]];
  return `Queries ${span(edges(first.tokens, first.q_tile), place[0])} × ${queries}, in ${stop - start} of ${edges(first.tokens, first.kv_tile).length - 1} planes of tiles`;
}

function drawTiles(selection) {
  if (document.getElementById("figure-tiles").hidden) return;
  const axes = page.rows[Number(selection.row)].picture;
  const place = placeOf(axes, selection.where);
  const plane = axes.length > 1;
  const titles = axes.map((_, number) => `Axis ${number}`);
  const plots = panels("tiles-panels", plane ? [planeTitle(axes, place), ...titles] : titles);
  if (plane) drawPlane(plots.shift(), axes, place);
  plots.forEach((plot, number) => drawAxis(plot, axes[number], number, place[number]));
}
