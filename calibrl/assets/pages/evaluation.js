const find = (selector) => document.querySelector(selector);
const cards = [...document.querySelectorAll(".card")];

// Shown are the problems of one benchmark, with one verdict, that hold a text.
function fits(card, benchmark, verdict, text) {
  if (benchmark && card.dataset.b !== benchmark) return false;
  if (verdict && card.dataset.v !== verdict) return false;
  return !text || card.textContent.toLowerCase().includes(text);
}

function show() {
  const benchmark = find("#b").value;
  const verdict = find("#v").value;
  const text = find("#t").value.toLowerCase();
  for (const card of cards) card.hidden = !fits(card, benchmark, verdict, text);
  const shown = cards.filter((card) => !card.hidden);
  find("#n").textContent = `${shown.length} of ${cards.length} shown`;
}

for (const control of ["#b", "#v", "#t"]) find(control).addEventListener("input", show);
show();
