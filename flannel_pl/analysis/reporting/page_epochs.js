/* Names of the epochs above a chart: beside each other, however short the epochs are, a line from each to its own. */
const LETTER_PX = 6, APART_PX = 8, NAME_SHADE = "#808080";

/* Where names go that would like to stand in the middle of their epochs, in pixels from the axis' beginning. */
function placesOf(middles, widths, width) {
  const places = [];
  let taken = -44, free = width + 12;
  middles.forEach((middle, number) => {
    places.push(Math.max(middle, taken + widths[number] / 2));
    taken = places[number] + widths[number] / 2;
  });
  for (let number = places.length - 1; number >= 0; number--) {
    places[number] = Math.min(places[number], free - widths[number] / 2);
    free = places[number] - widths[number] / 2;
  }
  return places;
}

function namesOf(plot) {
  const [low, high] = plot.layout.xaxis.range, width = plot._fullLayout.xaxis._length;
  const shown = data.epochs.filter(([, first, last]) => low <= last && first < high);
  const middles = shown.map(([, first, last]) =>
    width * ((Math.max(first, low) + Math.min(last, high)) / 2 - low) / (high - low));
  const places = placesOf(middles, shown.map(([name]) => name.length * LETTER_PX + APART_PX), width);
  return shown.map(([text], number) => ({
    text, x: middles[number] / width, y: 1, xref: "paper", yref: "paper", ax: places[number] - middles[number],
    ay: -8, xanchor: "center", yanchor: "bottom", font: { size: 11 }, showarrow: true, arrowhead: 0, arrowwidth: 1,
    arrowcolor: NAME_SHADE, name: "epoch",
  }));
}

function nameEpochs(state) {
  const { plot } = state;
  const place = () => Plotly.relayout(plot, { annotations: [...state.chart.layout.annotations, ...namesOf(plot)] });
  const begins = (change, words) => Object.keys(change).some((key) => words.some((word) => key.startsWith(word)));
  plot.on("plotly_relayout", (change) => begins(change, ["xaxis", "autosize", "width"]) && place());
  return place();
}
