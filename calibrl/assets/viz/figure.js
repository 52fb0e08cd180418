// What every figure has besides its knobs: a large mode for a projector, and a link whose address
// holds the setting, so that a teacher can send it and a page opened with it restores it.

function equip(figure) {
  const root = document.getElementById(figure.uid);
  const link = document.getElementById(figure.uid + "-link");
  const button = document.getElementById(figure.uid + "-large");
  const inputs = [...root.querySelectorAll("input, select")];
  const start = "#" + figure.uid + ":";
  const name = (input) => input.id.slice(figure.uid.length + 1);

  // The address of the present setting: the position of each knob
  function write() {
    link.href = start + inputs.map((input) => name(input) + "=" + input.value).join(",");
  }

  // A setting from the page's address; what does not name a position of a knob changes nothing
  function read() {
    if (!location.hash.startsWith(start)) return;
    for (const part of location.hash.slice(start.length).split(",")) {
      const input = inputs.find((candidate) => part.startsWith(name(candidate) + "="));
      const value = part.slice(part.indexOf("=") + 1);
      const last = input && (input.options ? input.options.length - 1 : Number(input.max));
      if (!input || !/^\d+$/.test(value) || Number(value) > last) continue;
      input.value = value;
      input.dispatchEvent(new Event("input"));
      input.dispatchEvent(new Event("change"));
    }
    write();
    root.scrollIntoView();
  }

  function enlarge(on) {
    root.classList.toggle("large", on);
    button.textContent = on ? "small" : "large";
    button.setAttribute("aria-pressed", String(on));
  }

  // Full screen where the browser allows it, the whole window elsewhere; Escape ends both
  button.addEventListener("click", () => {
    const on = !root.classList.contains("large");
    enlarge(on);
    if (on && root.requestFullscreen) root.requestFullscreen().catch(() => {});
    if (!on && document.fullscreenElement === root) document.exitFullscreen();
  });
  document.addEventListener("fullscreenchange", () => {
    enlarge(document.fullscreenElement === root);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") enlarge(false);
  });

  for (const input of inputs) {
    input.addEventListener("input", write);
    input.addEventListener("change", write);
  }
  window.addEventListener("hashchange", read);
  write();
  read();
}
