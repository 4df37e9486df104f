/* The page's charts: unpacks the numbers and draws a chart when it comes near, in place of its static figure.
   Whatever fails leaves the static figure where it is. `library.py` puts this and page_player.js into one
   function, so that nothing of them is global. */
const FRAME_MS = 250, CALM_FRAME_MS = 1000, NEAR_PX = 300, PANEL_PX = 230, SCENE_PX = 420, NAMES_PX = 24;
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("chart-data").textContent);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)");
const states = [];
let frame = 0;

/* Numbers. */

const TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array };
function bytes(text) {
  const letters = atob(text), found = new Uint8Array(letters.length);
  for (let at = 0; at < found.length; at++) found[at] = letters.charCodeAt(at);
  return found;
}

function array(place) {
  const one = data.arrays[place];
  one.values ??= new TYPES[one.type](bytes(one.data).buffer);
  return one.values;
}

function resolved(value) {
  if (Array.isArray(value)) return value.map(resolved);
  if (value === null || typeof value !== "object") return value;
  if (!("$" in value)) {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolved(one)]));
  }
  const flat = array(value.$);
  if (!value.rows) return flat;
  const width = flat.length / value.rows;
  const log = (x) => (x > 0 ? Math.log10(x) : null);
  return Array.from({ length: value.rows }, (_, row) => {
    const cells = flat.subarray(row * width, (row + 1) * width);
    return value.log ? Array.from(cells, log) : cells;
  });
}

/* Elements. */

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function button(label, act, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", act);
  return made;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/* What depends on light and dark; keys are paths, as Plotly.relayout takes them. */
function theme(state) {
  const [ink, line, card] = ["ink", "line", "card"].map(color);
  const found = { "font.color": ink, "hoverlabel.bgcolor": card, "hoverlabel.font.color": ink };
  const axes = state.chart.scenes ? ["scene.xaxis", "scene.yaxis", "scene.zaxis"]
    : Object.keys(state.chart.layout).filter((key) => key.includes("axis"));
  for (const axis of axes) {
    Object.assign(found, { [`${axis}.gridcolor`]: line, [`${axis}.zerolinecolor`]: line });
  }
  for (let panel = 0; panel < (state.chart.panels ?? 0); panel++) found[`shapes[${panel}].line.color`] = ink;
  return found;
}

function place(layout, paths) {
  for (const [path, value] of Object.entries(paths)) {
    const keys = path.replace(/\[(\d+)\]/g, ".$1").split(".");
    const last = keys.pop();
    keys.reduce((part, key) => (part[key] ??= {}), layout)[last] = value;
  }
  return layout;
}

/* Charts of lines and maps. */

const BASE = {
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
  font: { family: "system-ui, sans-serif", size: 12 }, hoverlabel: { align: "left", font: { size: 12 } },
};
const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, showTips: false };
const seen = (state, keys) => keys.every((key) => state.on.get(key) !== false);

function tracesOf(state) {
  return state.chart.traces.map(({ keys, ...rest }) => ({ ...resolved(rest), visible: seen(state, keys) }));
}

function layoutOf(state) {
  const given = structuredClone(state.chart.layout);
  for (const key of Object.keys(given).filter((name) => name.includes("axis"))) {
    Object.assign(given[key], { automargin: true, zeroline: false, fixedrange: key !== "xaxis" && coarse.matches });
  }
  given.xaxis.title = { text: "step", standoff: 6 };
  given.shapes.slice(0, state.chart.panels).forEach((line) => Object.assign(line, { x0: step(), x1: step() }));
  const right = state.chart.traces.some((trace) => trace.showscale) ? 64 : 12;
  // With a finger a drag scrolls the page; there are buttons to zoom.
  const names = state.chart.named ? NAMES_PX : 0;
  const margin = { l: 48, r: right, t: 30 + names, b: 44 };
  const height = 90 + names + PANEL_PX * Math.max(1, state.chart.panels);
  return { ...BASE, ...given, margin, height, dragmode: coarse.matches ? false : "zoom" };
}

function zoom(state, factor) {
  const [low, high] = state.plot.layout.xaxis.range;
  const whole = state.chart.layout.xaxis.range;
  if (!factor) return Plotly.relayout(state.plot, { "xaxis.range": [...whole], ...wholeHeight(state) });
  const middle = step() >= low && step() <= high ? step() : (low + high) / 2;
  const range = [middle - (middle - low) * factor, middle + (high - middle) * factor];
  return Plotly.relayout(state.plot, { "xaxis.range": [Math.max(range[0], whole[0]), Math.min(range[1], whole[1])] });
}

function wholeHeight(state) {
  const found = {};
  for (const [key, axis] of Object.entries(state.chart.layout)) {
    if (!key.startsWith("yaxis")) continue;
    if (axis.range) found[`${key}.range`] = [...axis.range];
    else found[`${key}.autorange`] = true;
  }
  return found;
}

/* The cloud. */

function positions(scene, at) {
  const points = array(scene.points.$), size = 3 * scene.tokens;
  const low = Math.floor(at), part = at - low;
  const from = points.subarray(low * size, (low + 1) * size);
  if (!part) return from;
  const to = points.subarray((low + 1) * size, (low + 2) * size);
  return from.map((value, index) => value + part * (to[index] - value));
}

/* Which frame of a scene belongs to a step of the player: the last one up to it. */
function frameOf(scene, at) {
  const index = (wanted) => Math.max(0, scene.steps.findLastIndex((one) => one <= wanted));
  const low = index(data.steps[Math.floor(at)]);
  const part = at - Math.floor(at);
  const isNext = part && index(data.steps[Math.floor(at) + 1]) === low + 1;
  return isNext ? low + part : low;
}

const AXES = ["x", "y", "z"];

function coordinates(state, at) {
  const scene = state.scene, where = positions(scene, frameOf(scene, at));
  return Object.fromEntries(AXES.map((name, axis) => [name, scene.kinds.map(({ first, count }) =>
    where.slice(axis * scene.tokens + first, axis * scene.tokens + first + count))]));
}

function sceneTraces(state) {
  const at = coordinates(state, frame);
  return state.scene.kinds.map((kind, number) => ({
    type: "scatter3d", mode: "markers", x: at.x[number], y: at.y[number], z: at.z[number], text: kind.texts,
    hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}, %{z:.4g}<extra></extra>", visible: seen(state, [kind.key]),
    marker: { size: 3.5, color: kind.color, opacity: 0.85 }, meta: { run: state.scene.run, kind: kind.key },
  }));
}

function sceneLayout(state) {
  const axis = (number) => ({
    title: { text: state.scene.axes[number], font: { size: 11 } }, range: state.scene.ranges[number],
    showspikes: false, nticks: 4, tickfont: { size: 10 }, backgroundcolor: "rgba(0,0,0,0)",
  });
  // Words of two axes stand to the left: so it is looked at from farther off, and past its middle, on a phone more so.
  const [far, aside] = state.figure.clientWidth < 450 ? [1.45, 0.2] : [1.05, 0.12];
  const center = { x: 0.78 * aside, y: -0.63 * aside, z: -0.1 };
  const camera = { center, eye: { x: center.x + 1.3 * far, y: center.y + 1.6 * far, z: center.z + 1.2 * far } };
  const [x, y, z] = state.scene.aspect; // not by what is seen: that changes from step to step
  const scene = { xaxis: axis(0), yaxis: axis(1), zaxis: axis(2), aspectmode: "manual", aspectratio: { x, y, z },
    dragmode: "orbit", camera };
  return { ...BASE, scene, uirevision: "same", margin: { l: 0, r: 0, t: 0, b: 0 }, height: SCENE_PX };
}

function turn(state, angle, nearer) {
  const { center, eye } = state.plot.layout.scene.camera;
  const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
  const turned = ({ x, y, z }) => ({ x: x * cos - y * sin, y: x * sin + y * cos, z });
  const middle = turned(center), to = turned(eye); // what is looked past stays to the same side
  const between = (axis) => middle[axis] + nearer * (to[axis] - middle[axis]);
  const moved = { center: middle, eye: { x: between("x"), y: between("y"), z: between("z") } };
  return Plotly.relayout(state.plot, { "scene.camera.center": moved.center, "scene.camera.eye": moved.eye });
}

/* Drawing. */

const queue = [];
let isDrawing = false;

/* Draws what is near, one after another so that the page answers in between, and clouds last. */
async function drawNear() {
  if (isDrawing) return;
  isDrawing = true;
  while (queue.length) {
    queue.sort((one, other) => Boolean(one.scene) - Boolean(other.scene));
    const state = queue.shift();
    state.isQueued = false;
    if (state.isNear && !state.isReady) await draw(state).catch((error) => fail(state, error));
    await new Promise((go) => setTimeout(go));
  }
  isDrawing = false;
}

function fail(state, error) {
  state.box.hidden = state.isReady = true;
  state.isNear = false;
  console.error(error);
}

async function draw(state) {
  const { chart, plot } = state;
  const [traces, layout] = chart.scenes ? [sceneTraces(state), sceneLayout(state)]
    : [tracesOf(state), layoutOf(state)];
  state.box.hidden = false;
  await Plotly.newPlot(plot, traces, place(layout, theme(state)), CONFIG);
  state.figure.classList.add("live");
  performance.mark(`drawn ${state.figure.dataset.chart}`); // for whoever measures
  Plotly.Plots.resize(plot);
  if (chart.named) nameEpochs(state);
  state.isReady = true;
  state.shown = undefined;
  mark(state);
}

const step = () => data.steps[Math.floor(frame)];

/* Brings a chart to the current step, if it is in sight. */
function mark(state) {
  if (!state.isReady || !state.isNear || state.shown === frame) return;
  if (state.scene) {
    Plotly.restyle(state.plot, coordinates(state, frame));
  } else if (state.shown === undefined || Math.floor(state.shown) !== Math.floor(frame)) {
    const moved = {};
    for (let panel = 0; panel < state.chart.panels; panel++) {
      moved[`shapes[${panel}].x0`] = moved[`shapes[${panel}].x1`] = step();
    }
    Plotly.relayout(state.plot, moved);
  }
  state.shown = frame;
}

function applyLegend(state) {
  if (!state.isReady) return;
  const traces = state.scene ? state.scene.kinds.map((kind) => [kind.key]) : state.chart.traces.map((t) => t.keys);
  Plotly.restyle(state.plot, { visible: traces.map((keys) => seen(state, keys)) });
}

function switchOf(state, entry) {
  const swatch = element("span", { class: `swatch ${entry.dash}`, "aria-hidden": "true" });
  swatch.style.borderColor = entry.color || "currentColor";
  const made = button("", () => {
    state.on.set(entry.key, !state.on.get(entry.key));
    made.setAttribute("aria-pressed", state.on.get(entry.key));
    applyLegend(state);
  }, { "aria-pressed": entry.on });
  made.append(swatch, entry.label);
  state.on.set(entry.key, entry.on);
  return made;
}

function legendOf(state) {
  const [folded, open] = [true, false].map((is) => state.chart.entries.filter((one) => one.folded === is));
  const made = element("div", { class: "legend", role: "group", "aria-label": `Legend: ${state.heading}` });
  // Few switches need no fold.
  const several = folded.length > 1 ? folded : [];
  made.append(...open.map((one) => switchOf(state, one)));
  if (several.length) {
    const inside = element("div", { class: "legend" }, ...several.map((one) => switchOf(state, one)));
    made.append(element("details", {}, element("summary", {}, "one by one"), inside));
  }
  return made;
}

function toolsOf(state) {
  const tools = state.chart.scenes
    ? [["\u21ba", "Turn left", -0.3, 1], ["\u21bb", "Turn right", 0.3, 1], ["+", "Closer", 0, 0.8],
      ["\u2212", "Farther", 0, 1.25]].map(([sign, words, angle, nearer]) =>
      button(sign, () => turn(state, angle, nearer), { "aria-label": words, title: words }))
    : [["+", "Zoom in", 0.5], ["\u2212", "Zoom out", 2], ["All", "All steps", 0]].map(([sign, words, factor]) =>
      button(sign, () => zoom(state, factor), { "aria-label": words, title: words }));
  const made = element("div", { class: "tools", role: "group", "aria-label": `View: ${state.heading}` });
  if (state.chart.scenes?.length > 1) {
    const select = element("select", { "aria-label": "Which cloud" },
      ...state.chart.scenes.map((scene, number) => element("option", { value: number }, scene.name)));
    select.addEventListener("change", () => {
      state.scene = state.chart.scenes[select.value];
      if (state.isReady) draw(state);
    });
    made.append(select);
  }
  made.append(...tools);
  return made;
}

function setUp(figure) {
  const chart = data.charts[figure.dataset.chart];
  const heading = figure.querySelector("h3").textContent;
  const plot = element("div", { class: "plot", role: "group", "aria-label": `${heading}, interactive` });
  const box = element("div", { class: "chart" });
  // The wheel scrolls the page; a scene would keep it for itself.
  if (chart.scenes) plot.addEventListener("wheel", (event) => event.stopPropagation(), { capture: true });
  const state = { figure, chart, heading, plot, box, on: new Map(), scene: chart.scenes?.[0] };
  box.hidden = true;
  box.append(legendOf(state), toolsOf(state), plot);
  if (chart.note) box.append(element("p", { class: "note" }, chart.note));
  figure.querySelector(".static").after(box);
  states.push(state);
  return state;
}
