// Recorded answers on the gate, and the push on each: a dot and two bars an answer.
// Texts of a model are set as text, never as markup.

function groupFigure(figure) {
  const frames = figure.frames;
  const knobs = figure.knobs;

  // An answer's push is GRPO's, plus weight times a part with slope 1 and one with slope alpha
  const pushed = ([plain, full, gated], alpha, weight) => plain + weight * (full + alpha * gated);

  function setBar(bar, push, longest) {
    const length = (92 * Math.abs(push)) / longest;
    bar.setAttribute("width", length.toFixed(1));
    bar.setAttribute("x", (push < 0 ? 250 - length : 250).toFixed(1));
  }

  function setPercent(label, plain, push) {
    const ratio = push / plain;
    const sign = ratio >= 1 ? "+" : "";
    label.textContent = plain ? sign + Math.round(100 * (ratio - 1)) + "%" : "";
    label.setAttribute("x", plain < 0 ? 254 : 246);
    label.setAttribute("text-anchor", plain < 0 ? "start" : "end");
  }

  function draw(element, position) {
    const alpha = knobs.a[position("a")];
    const weight = knobs.w[position("w")];
    const [gap, right, sure] = ["g", "r", "s"].map(position);
    const gaps = frames.D[gap][right][sure];
    const parts = frames.parts[gap][right][sure];
    const rows = frames.rows[right];

    // The axes: the same for every alpha, as wide as the widest gap
    const lengths = parts.map((part) => Math.max(Math.abs(pushed(part, 1, weight)),
                                                 Math.abs(part[0])));
    const longest = Math.max(0.001, ...lengths);
    const reach = Math.max(0.3, ...gaps.map((D) => 1.1 * Math.abs(D)));
    const x = (D) => (180 + (150 * D) / reach).toFixed(1);
    const y = (loss) => (80 - (66 * loss) / reach).toFixed(1);

    // The gate, for right and for wrong answers
    element("gr").setAttribute("points", "30," + y(reach) + " 180,80 330," + y(-alpha * reach));
    element("gw").setAttribute("points", "30," + y(-alpha * reach) + " 180,80 330," + y(reach));

    rows.forEach((row, j) => {
      const isRight = j < frames.right[right];
      const colour = isRight ? figure.colours.right : figure.colours.wrong;
      const push = pushed(parts[j], alpha, weight);

      // The dot, on the gate at its mean gap
      const signed = isRight ? -gaps[j] : gaps[j];
      const dot = element("d" + j);
      dot.setAttribute("cx", x(gaps[j]));
      dot.setAttribute("cy", y(signed > 0 ? signed : alpha * signed));
      dot.setAttribute("fill", colour);

      // The bars, GRPO's and ours, with the difference in percent and the answer's text
      element("b" + j).setAttribute("fill", colour);
      setBar(element("b" + j), push, longest);
      setBar(element("p" + j), parts[j][0], longest);
      setPercent(element("n" + j), parts[j][0], push);
      element("t" + j).textContent = frames.text[row];
    });

    // The sentence above the picture
    const compared = (part) =>
      pushed(part, alpha, weight).toFixed(2) + ", under GRPO " + part[0].toFixed(2);
    const settings =
      "alpha " + alpha + ", weight " + weight + ", " + knobs.g[gap] + " gap, " +
      frames.right[right] + " of " + rows.length + " right";
    element("o").textContent = parts.some((part) => part[0])
      ? settings + ": a token of the first answer is pushed " + compared(parts[0]) +
        "; one of the last " + compared(parts[parts.length - 1]) + "."
      : "All " + rows.length + " rewards are equal, so every advantage is 0: " +
        "no push from GRPO, none from CalibRL, whatever alpha is.";
  }

  movable(figure, draw);
}
