// A job on the page. The words come from the lab; here they only find their places (data-slot).

import { send } from "./api.js";
import { announceEnd, complain } from "./messages.js";

const ENDINGS = new Set(["done", "failed", "cancelled"]);

const fillers = {
  page(element, view) {
    if (element.getAttribute("href") !== view.page) element.href = view.page;
    element.setAttribute("aria-label", view.texts.title);
  },
  picture(element, view) {
    if ("large" in element.dataset && view.state === "done") return; // the page shows it larger by itself
    element.hidden = !view.picture;
    if (!view.picture || element.dataset.shown === view.picture) return;
    element.dataset.shown = view.picture;
    element.width = view.width;
    element.height = view.height;
    element.alt = view.texts.alt;
    if (view.pictures) element.srcset = view.pictures;
    else element.removeAttribute("srcset");
    element.src = view.picture;
  },
  fraction(element, view) { element.value = view.fraction; },
  download(element, view) {
    element.hidden = !view.download;
    if (view.download) element.href = `${view.download}?download`;
  },
  status(element, view) { element.textContent = view.texts.status; },
  state(element, view) { element.textContent = view.texts.state; },
  steps(element, view) { element.textContent = view.texts.steps; },
  size(element, view) { element.textContent = view.texts.size; },
  note(element, view) { element.textContent = view.texts.note; },
  steering(element, view) {
    const told = view.steering.map((each) => each.text);
    if (element.dataset.told === told.join("\n")) return;
    element.dataset.told = told.join("\n");
    element.replaceChildren(...told.map((textContent) => Object.assign(document.createElement("li"), { textContent })));
  },
};

export function fill(host, view) {
  const before = host.dataset.state;
  host.dataset.job = view.id;
  host.dataset.attempt = view.attempt;
  host.dataset.state = view.state;
  for (const element of host.querySelectorAll("[data-slot]")) fillers[element.dataset.slot](element, view);
  for (const button of host.querySelectorAll("[data-action]")) {
    const gone = !view.actions.includes(button.dataset.action);
    if (gone && button === document.activeElement) (host.querySelector("[data-slot=page]") ?? document.querySelector("main")).focus();
    button.hidden = gone;
  }
  if (before !== view.state && ENDINGS.has(view.state) && before !== "none") announceEnd(view);
}

// What goes with an action; a sweep says at which size its pictures are made large.
const bodies = {
  cancel: (attempt) => ({ attempt: Number(attempt) }),
  enlarge: () => ({ level: Number(document.querySelector("[data-enlarge-level]")?.value) || null }),
};

// Buttons work by delegation, so that cells which come later have them too.
export function listenToButtons(onAnswer) {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-action]");
    if (!button) return;
    const { job, attempt } = button.closest("[data-job]").dataset;
    const body = bodies[button.dataset.action]?.(attempt);
    button.disabled = true;
    try {
      onAnswer(await send("POST", `/api/jobs/${job}/${button.dataset.action}`, body), button);
    } catch (error) {
      complain(error);
    } finally {
      button.disabled = false;
    }
  });
}
