// A figure with sliders and no kernel. Python hands over one object: uid is the prefix of every id,
// knobs has the values of each slider, and the rest is what the figure's own `draw` reads.

function movable(figure, draw) {
  const element = (name) => document.getElementById(figure.uid + "-" + name);
  const position = (knob) => Number(element(knob).value);

  function show() {
    for (const knob in figure.knobs) {
      const text = String(figure.knobs[knob][position(knob)]);
      element(knob + "-v").textContent = text;
      element(knob).setAttribute("aria-valuetext", text);
    }
    draw(element, position);
  }

  for (const knob in figure.knobs) {
    element(knob).addEventListener("input", show);
  }
  show();
}
