/* Plays the steps through all charts, unpacks Plotly, and begins. */
/* The player. */

function player() {
  const last = data.steps.length - 1;
  const slider = element("input", { type: "range", min: 0, max: last, step: 1, value: 0, "aria-label": "Step" });
  const said = element("output", {});
  let timer = 0, began = 0;
  const go = (to) => {
    frame = to;
    slider.value = Math.floor(to);
    const epoch = data.epochs.findLast(([, first, end]) => first <= step() && step() <= end);
    const words = `step ${step()}` + (epoch ? `, ${epoch[0]}` : "");
    said.textContent = words;
    slider.setAttribute("aria-valuetext", words);
    states.forEach(mark);
  };
  const stop = () => {
    clearTimeout(timer);
    cancelAnimationFrame(timer);
    timer = 0;
    play.textContent = "\u25b6";
    play.setAttribute("aria-label", "Play");
    if (frame !== Math.floor(frame)) go(Math.floor(frame));
  };
  const calmly = () => {
    if (frame >= last) return stop();
    go(frame + 1);
    timer = setTimeout(calmly, CALM_FRAME_MS);
  };
  const smoothly = (now) => {
    began ||= now - frame * FRAME_MS;
    const at = Math.max(frame, (now - began) / FRAME_MS);
    go(Math.min(at, last));
    if (at >= last) return stop();
    timer = requestAnimationFrame(smoothly);
  };
  const play = button("\u25b6", () => {
    if (timer) return stop();
    if (frame >= last) go(0);
    play.textContent = "\u23f8";
    play.setAttribute("aria-label", "Pause");
    began = 0;
    timer = calm.matches ? setTimeout(calmly, 0) : requestAnimationFrame(smoothly);
  }, { class: "play", "aria-label": "Play" });
  slider.addEventListener("input", () => {
    const to = Number(slider.value);
    stop();
    go(to);
  });
  go(0);
  slider.title = data.said;
  return element("div", { class: "player", role: "group", "aria-label": "Steps" }, play, slider, said);
}

/* Beginning. */

async function library() {
  const packed = new Blob([bytes(byId("chart-library").textContent)]).stream();
  const script = element("script");
  script.textContent = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script); // runs at once; the page's policy knows its hash
  script.remove();
}

const hasWebGL = () => Boolean(document.createElement("canvas").getContext("webgl"));

async function begin() {
  await library();
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const shown = figures.filter((figure) => !data.charts[figure.dataset.chart].scenes || hasWebGL()).map(setUp);
  if (!shown.length) return;
  if (data.steps.length > 1) {
    const section = shown[0].figure.closest("section");
    if (data.said) section.querySelector(".pictures").before(element("p", { class: "note played" }, data.said));
    section.append(player());
  }
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const state = shown.find((one) => one.figure === entry.target);
      state.isNear = entry.isIntersecting;
      if (state.isNear && !state.isReady && !state.isQueued) state.isQueued = queue.push(state) > 0;
      else mark(state);
    }
    drawNear();
  }, { rootMargin: `${NEAR_PX}px` });
  shown.forEach(({ figure }) => near.observe(figure));
  dark.addEventListener("change", () => states.filter((one) => one.isReady)
    .forEach((one) => Plotly.relayout(one.plot, theme(one))));
}

begin().catch((error) => console.error(error));
