// The law of growth: a line over U/|N| that crosses 0 where entropy begins to grow.
// figure.needed[weight][length][alpha] is where it crosses, null where it never does.

function growthFigure(figure) {
  const [low, high] = figure.range;
  const x = (ratio) => 30 + (292 * (ratio - low)) / (high - low);
  const y = (change) => 84 - 66 * change;

  function draw(element, position) {
    const needed = figure.needed[position("w")][position("t")][position("a")];
    const change = (ratio) => (needed === null ? -1 : -1 + ratio / needed);

    // The line, cut where it leaves the picture above or below
    const within = (ratio) => Math.min(high, Math.max(low, ratio));
    const ends = needed === null ? [low, high] : [within(0 * needed), within(2 * needed)];
    const line = element("l");
    line.setAttribute("x1", x(ends[0]).toFixed(1));
    line.setAttribute("y1", y(change(ends[0])).toFixed(1));
    line.setAttribute("x2", x(ends[1]).toFixed(1));
    line.setAttribute("y2", y(change(ends[1])).toFixed(1));

    // Where it grows
    const left = needed === null ? high : within(needed);
    element("g").setAttribute("x", x(left).toFixed(1));
    element("g").setAttribute("width", (x(high) - x(left)).toFixed(1));

    // The sentence above the picture
    const lam = figure.strength[position("w")][position("t")];
    element("o").textContent =
      "Strength lam = " + lam + ": entropy grows " +
      (needed === null
        ? "nowhere, for without a gate the term has GRPO's own direction."
        : "where U is above " + needed + " times |N|, and falls elsewhere.");
  }

  movable(figure, draw);
}
