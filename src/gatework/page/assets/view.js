// The view: everything a reader can switch on the page, kept in the part of its address behind the "#", so
// that a link restores it and the browser's back button undoes it. Only what differs from the defaults is there.

const viewFields = new Map();

// `read` returns the present state as a list of texts; `write` takes such a list, from anywhere: whatever in it
// is unknown must be ignored.
function inView(key, read, write) {
  viewFields.set(key, { read, write, initial: read() });
}

function sameList(one, other) {
  return one.length === other.length && one.every((value, index) => value === other[index]);
}

function viewAddress() {
  const query = new URLSearchParams();
  for (const [key, { read, initial }] of viewFields) {
    const values = read();
    if (!sameList(values, initial)) for (const value of values.length ? values : [""]) query.append(key, value);
  }
  const text = query.toString();
  return location.href.split("#")[0] + (text ? `#${text}` : "");
}

// A step in the browser's history; while somebody types, only the address changes.
function rememberView(typing = false) {
  const address = viewAddress();
  if (address === location.href) return;
  try {
    history[typing ? "replaceState" : "pushState"](null, "", address);
  } catch {
    // An embedding page may forbid it; the button still copies the link.
  }
}

function restoreView() {
  const text = location.hash.slice(1);
  if (text && !text.includes("=")) return false; // a place on the page, such as the table
  const query = new URLSearchParams(text);
  for (const [key, { write, initial }] of viewFields) write(query.has(key) ? query.getAll(key) : initial);
  drawAll();
  return true;
}

async function copyLink() {
  const address = viewAddress();
  const note = document.getElementById("link-note");
  try {
    await navigator.clipboard.writeText(address);
    note.value = "Link copied";
  } catch {
    note.value = copyBySelection(address) ? "Link copied" : "Copy it from the address bar";
  }
  setTimeout(() => { note.value = ""; }, 4000);
}

// For browsers that give pages opened from a file no clipboard.
function copyBySelection(text) {
  const field = element("textarea", { readonly: "", class: "unseen", "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  const focused = document.activeElement;
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return copied;
}

// The colour scheme: the system's, or the reader's choice.
const THEMES = ["system", "light", "dark"];

function chosenTheme() {
  return document.querySelector("#theme input:checked").value;
}

function applyTheme(theme) {
  document.querySelector(`#theme input[value="${theme}"]`).checked = true;
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

// A labelled list of choices that is part of the view; nothing is shown where there is nothing to choose.
function choice(form, name, label, options, initial, redraw) {
  const select = element("select", { name }, ...options.map(([value, text]) => element("option", { value }, text)));
  select.value = String(initial);
  select.addEventListener("change", () => { redraw(); rememberView(); });
  const wrapper = element("label", {}, `${label} `, select);
  wrapper.hidden = options.length < 2;
  form.append(wrapper);
  inView(`${form.dataset.view}.${name}`, () => [select.value], ([value]) => {
    select.value = options.some(([known]) => known === value) ? value : String(initial);
  });
}

// A switch that is part of the view, and on to begin with.
function toggle(form, name, label, redraw) {
  const box = element("input", { type: "checkbox", name, value: "shown", checked: "" });
  box.addEventListener("change", () => { redraw(); rememberView(); });
  form.append(element("label", {}, box, ` ${label}`));
  const key = `${form.dataset.view}.${name}`;
  inView(key, () => [box.checked ? "shown" : "hidden"], ([value]) => { box.checked = value !== "hidden"; });
}

function selectionOf(formId) {
  return Object.fromEntries(new FormData(document.getElementById(formId)));
}

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Called once by each page, after it has made its controls.
function startPage() {
  inView("theme", () => [chosenTheme()], ([theme]) => applyTheme(THEMES.includes(theme) ? theme : "system"));
  for (const place of document.querySelectorAll(".glyph")) place.replaceWith(glyph(Number(place.dataset.series)));
  for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("theme").addEventListener("change", () => { applyTheme(chosenTheme()); drawAll(); rememberView(); });
  document.getElementById("copy-link").addEventListener("click", copyLink);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("hashchange", restoreView);
  if (!restoreView()) drawAll();
}
