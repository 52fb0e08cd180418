// The movable gate: at every move of the slider, numbers from a table become coordinates.
// There is no formula of the method here: `figure.frames` holds what the package computed.

function alphaFigure(figure) {
  const frames = figure.frames;
  const element = (name) => document.getElementById(figure.uid + "-" + name);

  // Where a value stands in a panel whose axis ends at `top`: 70 pixels from the middle line
  const height = (value, top) => Math.round((95 - (70 * value) / top) * 100) / 100;

  function setBar(bar, value) {
    const end = height(value, 1.2);
    bar.setAttribute("y", Math.min(95, end));
    bar.setAttribute("height", Math.abs(end - 95));
  }

  // One curve is [loss at -2, at 0, at 2, slope below 0, slope above 0]
  function setCurve(k, [left, middle, right, below, above]) {
    const points = [[30, left], [130, middle], [230, right]];
    const text = points.map(([x, loss]) => x + "," + height(loss, 2)).join(" ");
    element("g" + k).setAttribute("points", text);
    const steps = "M30 " + height(below, 1) + "H130M130 " + height(above, 1) + "H230";
    element("s" + k).setAttribute("d", steps);
  }

  function draw() {
    const position = Number(element("a").value);
    const chosen = Number(element("w").value);
    const gate = frames.gate[position];
    const ours = frames.push[chosen];
    const percent = (j) => Math.round(1000 * (ours[position][j] / frames.grpo[j] - 1)) / 10 + "%";

    // The gate and its slope, for a correct and for a wrong answer
    gate.forEach((curve, k) => setCurve(k, curve));

    // Two bars an answer, and the difference in percent above or below the second
    ours[position].forEach((push, j) => {
      setBar(element("p" + j), frames.grpo[j]);
      setBar(element("b" + j), push);
      const number = element("n" + j);
      number.textContent = "+" + percent(j);
      number.setAttribute("y", height(push, 1.2) + (push > 0 ? -3 : 10));
    });

    // The sentence above the picture
    const alpha = "alpha " + figure.alphas[position].toFixed(2);
    element("o").textContent =
      alpha + ": " + Math.round(100 * gate[0][4]) + "% of the push is kept once an answer is on " +
      "the right side of the expert. With weight " + figure.weights[chosen] + " that adds " +
      percent(0) + " to GRPO's push on the wrong side, " + percent(1) + " on the right side.";
    element("a").setAttribute("aria-valuetext", alpha);
  }

  element("a").addEventListener("input", draw);
  element("w").addEventListener("change", draw);
  draw();
}
