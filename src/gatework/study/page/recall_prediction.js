// Text: whether recall predicts the gap to attention.

function drawPrediction({ panels: wanted, points, x_title: title, x_range: range }) {
  panels("prediction-panels", wanted.map((panel) => panel.title)).forEach((plot, position) => {
    const { key, y_title: vertical, y_range: vertically } = wanted[position];
    const shown = points.filter((point) => point[key] && !hiddenSeries.has(point.series));
    const traces = shown.map((point) => {
      const { colour } = seriesStyle(point.series);
      return {
        type: "scatter", mode: "markers", name: seriesName(point.series), x: [point.recall[0]], y: [point[key][0]], cliponaxis: false,
        error_x: spreadBars([point.recall], colour), error_y: spreadBars([point[key]], colour),
        marker: marker(point.series, 12), hoverinfo: "text", hovertext: [hoverText(point.hover)],
      };
    });
    const line = { color: cssColour("--muted"), width: 1.3, dash: "dot" };
    const zero = { type: "line", layer: "below", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line };
    draw(plot, traces, layout(axis(title, { range }), axis(vertical, { range: vertically, tickformat: "~g" }), { shapes: [zero], height: 380 }));
  });
}

section("recall_prediction", { draw: drawPrediction });
