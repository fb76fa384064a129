// Two pictures under one magnifier: whatever moves the one moves the other.

const LARGEST = 16;
const STEP = 1.25;

const panes = [...document.querySelectorAll("[data-pane]")];
const text = document.querySelector("[data-zoom-text]");
const fingers = new Map();
let scale = 1;
let x = 0; // where the picture's corner lies, in shares of the pane
let y = 0;

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function show() {
  x = clamp(x, 1 - scale, 0);
  y = clamp(y, 1 - scale, 0);
  for (const pane of panes) {
    const picture = pane.querySelector("img");
    if (picture) picture.style.transform = `translate(${100 * x}%, ${100 * y}%) scale(${scale})`;
  }
  text.textContent = `${Math.round(100 * scale)} %`;
}

// Keeps the point (u, v), in shares of the pane, where it is.
function zoom(factor, u = 0.5, v = 0.5) {
  const next = clamp(scale * factor, 1, LARGEST);
  x = u - ((u - x) * next) / scale;
  y = v - ((v - y) * next) / scale;
  scale = next;
  show();
}

function move(dx, dy) {
  x += dx;
  y += dy;
  show();
}

function fit() {
  scale = 1;
  show();
}

function place(pane, event) {
  const box = pane.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function drag(pane, event) {
  if (!fingers.has(event.pointerId)) return;
  const [u, v] = place(pane, event);
  const [before, beforeV] = fingers.get(event.pointerId);
  const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
  fingers.set(event.pointerId, [u, v]);
  if (others.length) {
    const [[ou, ov]] = others;
    zoom(Math.hypot(u - ou, v - ov) / Math.max(Math.hypot(before - ou, beforeV - ov), 1e-3), (u + ou) / 2, (v + ov) / 2);
  } else {
    move(u - before, v - beforeV);
  }
}

const keys = {
  "+": () => zoom(STEP), "=": () => zoom(STEP), "-": () => zoom(1 / STEP), 0: fit,
  ArrowLeft: () => move(0.1, 0), ArrowRight: () => move(-0.1, 0), ArrowUp: () => move(0, 0.1), ArrowDown: () => move(0, -0.1),
};

for (const pane of panes) {
  pane.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(STEP ** (-event.deltaY / 100), ...place(pane, event));
  }, { passive: false });
  pane.addEventListener("pointerdown", (event) => {
    pane.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(pane, event));
  });
  pane.addEventListener("pointermove", (event) => drag(pane, event));
  for (const name of ["pointerup", "pointercancel"]) pane.addEventListener(name, (event) => fingers.delete(event.pointerId));
  pane.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
}

const buttons = { in: () => zoom(STEP), out: () => zoom(1 / STEP), fit };
for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", buttons[button.dataset.zoom]);
for (const select of document.querySelectorAll(".compare-choice select")) select.addEventListener("change", () => select.form.requestSubmit());
show();
