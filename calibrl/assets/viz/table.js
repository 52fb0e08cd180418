// Two runs of a table policy, GRPO's and the chosen one, in three panels.
// A run is [accuracies, entropies, right answers in use], one number every `figure.every` steps.

function tableFigure(figure) {
  const panels = [
    { metric: 0, top: 1 },
    { metric: 1, top: 3.5 },
    { metric: 2, top: 4.6, over: 0 },
  ];

  // The points of a curve: over the steps, or over another metric that ends at 1
  function points(values, top, across) {
    const last = values.length - 1;
    const x = (i) => 30 + (across ? 190 * across[i] : (190 * i) / last);
    const y = (value) => 150 - (130 * value) / top;
    return values.map((value, i) => x(i).toFixed(1) + "," + y(value).toFixed(1)).join(" ");
  }

  // When a run first reaches 70%, and how many right answers it then has in use
  function reached(run) {
    const first = run[0].findIndex((accuracy) => accuracy >= 0.7);
    if (first < 0) return null;
    return { step: figure.every * first, kinds: run[2][first].toFixed(2) };
  }

  function draw(element, position) {
    const grpo = figure.frames.grpo[position("s")];
    const ours = figure.frames.runs[position("s")][position("g")][position("w")][position("a")];
    for (const [name, run] of [["q", grpo], ["c", ours]]) {
      for (const { metric, top, over } of panels) {
        const line = points(run[metric], top, run[over]);
        element(name + metric).setAttribute("points", line);
      }
    }

    // The sentence above the picture
    const our = reached(ours);
    const plain = reached(grpo);
    element("o").textContent =
      "Accuracy reaches 70% " +
      (our ? "by step " + our.step + ", with " + our.kinds + " right answers in use"
           : "later than step " + figure.steps) +
      "; GRPO " +
      (plain ? "by step " + plain.step + ", with " + plain.kinds : "later") + ".";
  }

  movable(figure, draw);
}
