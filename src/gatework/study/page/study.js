// The page of one study. Its sections register themselves, in scripts that follow this one; here they are only
// called. `controls` is called once, before anything is drawn, `draw` whenever something has changed; both get
// what the section has in the page's JSON, and a section without anything there is left out.

const sections = [];

function section(name, { controls = () => {}, draw = () => {} }) {
  if (page.sections[name]) sections.push({ data: page.sections[name], controls, draw });
}

function drawAll() {
  for (const { data, draw } of sections) draw(data);
}

document.addEventListener("DOMContentLoaded", () => {
  buildLegend();
  for (const { data, controls } of sections) controls(data);
  startPage();
});
