// Asking for pictures: dropped, pasted, chosen from files or from the shelf; an estimate before anything begins.

import { send, upload } from "./api.js";
import { complain, tell } from "./messages.js";

const ESTIMATE_MS = 250;

const form = document.querySelector("[data-commission]");
const start = form.querySelector("[data-start]");
const estimate = form.querySelector("[data-estimate]");
const zones = Object.fromEntries([...form.querySelectorAll("[data-zone]")].map((zone) => [zone.dataset.zone, zone]));
const chosen = { content: [], style: [] };
const turned = new Set(); // dials that were touched; the others stay as the preset has them
let base = form.dataset.like ? JSON.parse(form.dataset.like) : null;
let asking = null;
let timer = 0;

// Choosing

function reference(picture) {
  return picture.sample ? { sample: picture.sample, title: picture.title } : { id: picture.id, title: picture.title };
}

function add(kind, pictures) {
  chosen[kind].push(...pictures);
  show(kind);
}

function remove(kind, picture) {
  chosen[kind] = chosen[kind].filter((each) => each !== picture);
  show(kind);
  zones[kind].querySelector("[data-files]").focus();
}

function show(kind) {
  const zone = zones[kind];
  zone.querySelector("[data-chosen]").replaceChildren(...chosen[kind].map((picture) => card(kind, picture)));
  zone.querySelector("[data-hint]").hidden = chosen[kind].length > 0;
  for (const pick of zone.querySelectorAll("[data-sample]")) {
    pick.setAttribute("aria-pressed", String(chosen[kind].some((picture) => picture.sample === pick.dataset.sample)));
  }
  changed();
}

function card(kind, picture) {
  const item = document.createElement("li");
  if (picture.thumbnail) item.append(Object.assign(document.createElement("img"), { src: picture.thumbnail, alt: "" }));
  item.append(Object.assign(document.createElement("span"), { className: "name", textContent: picture.title }));
  const button = Object.assign(document.createElement("button"), { type: "button", className: "icon", textContent: "×" });
  button.setAttribute("aria-label", `Leave out ${picture.title}`);
  button.addEventListener("click", () => remove(kind, picture));
  item.append(button);
  return item;
}

function toggle(kind, pick) {
  const known = chosen[kind].find((picture) => picture.sample === pick.dataset.sample);
  if (known) {
    chosen[kind] = chosen[kind].filter((picture) => picture !== known);
    show(kind);
  } else {
    add(kind, [{ sample: pick.dataset.sample, title: pick.dataset.title, thumbnail: pick.querySelector("img")?.src }]);
  }
}

async function take(kind, files) {
  const pictures = [...files].filter((file) => file.size);
  if (!pictures.length) return;
  const drop = zones[kind].querySelector("[data-drop]");
  drop.setAttribute("aria-busy", "true");
  try {
    const taken = await upload(pictures);
    add(kind, taken);
    const made = taken.find((picture) => picture.settings);
    if (made) restore(made);
    else if (taken.some((picture) => picture.notices.length)) tell(taken.flatMap((picture) => picture.notices).join(". "));
  } catch (error) {
    complain(error);
  } finally {
    drop.removeAttribute("aria-busy");
  }
}

function firstEmpty() {
  return chosen.content.length && !chosen.style.length ? "style" : "content";
}

for (const [kind, zone] of Object.entries(zones)) {
  const drop = zone.querySelector("[data-drop]");
  const input = zone.querySelector("[data-files]");
  input.addEventListener("change", () => { take(kind, input.files); input.value = ""; });
  for (const pick of zone.querySelectorAll("[data-sample]")) pick.addEventListener("click", () => toggle(kind, pick));
  zone.addEventListener("dragover", () => drop.classList.add("over"));
  for (const name of ["dragleave", "drop"]) zone.addEventListener(name, () => drop.classList.remove("over"));
}

document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.target.closest?.("[data-zone]")?.dataset.zone ?? firstEmpty(), event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  take(document.activeElement?.closest("[data-zone]")?.dataset.zone ?? firstEmpty(), event.clipboardData.files);
});

// Settings

function restore(picture) {
  base = picture.settings;
  turned.clear();
  const preset = form.elements.preset;
  if (!preset.querySelector('option[value=""]')) preset.prepend(new Option("As in the picture", ""));
  preset.value = "";
  form.elements.level.value = String(Math.min(base.levels, 3));
  form.elements.noise.value = base.noise.strength;
  form.elements.seed.value = base.seed;
  form.elements.strength.value = 0;
  const networks = [...form.elements.network.options].map((option) => option.value);
  form.elements.network.value = networks.includes(base.network) ? base.network : "auto";
  tell(`Settings restored from ${picture.title}.`);
  changed();
}

function strength() {
  return 10 ** Number(form.elements.strength.value);
}

function wanted() {
  const fields = form.elements;
  const settings = { level: Number(fields.level.value), strength: strength() };
  if (fields.preset.value) settings.preset = fields.preset.value;
  else settings.settings = base;
  if (turned.has("noise")) settings.noise = Number(fields.noise.value);
  if (turned.has("seed") && fields.seed.value) settings.seed = Number(fields.seed.value);
  if (turned.has("network")) settings.network = fields.network.value;
  return settings;
}

function describe() {
  form.querySelector('[data-for="strength"]').textContent = `× ${strength().toPrecision(2)}`;
  const noise = form.elements.preset.value && !turned.has("noise") ? "as the preset" : `${Math.round(100 * form.elements.noise.value)} %`;
  form.querySelector('[data-for="noise"]').textContent = noise;
}

form.addEventListener("input", (event) => {
  turned.add(event.target.name);
  changed();
});

// Estimate and start

function request() {
  return { contents: chosen.content.map(reference), styles: chosen.style.map(reference), wanted: wanted() };
}

function changed() {
  describe();
  clearTimeout(timer);
  asking?.abort();
  start.disabled = true;
  const missing = [["content", "a content"], ["style", "a style"]].filter(([kind]) => !chosen[kind].length).map(([, name]) => name);
  const count = chosen.content.length * chosen.style.length;
  start.textContent = count > 1 ? `Begin ${count} pictures` : "Begin";
  if (missing.length) {
    estimate.textContent = `Choose ${missing.join(" and ")}.`;
    return;
  }
  timer = setTimeout(ask, ESTIMATE_MS);
}

async function ask() {
  asking = new AbortController();
  try {
    estimate.textContent = (await send("POST", "/api/estimate", request(), { signal: asking.signal })).text;
    start.disabled = false;
  } catch (error) {
    if (error.name !== "AbortError") estimate.textContent = error.message;
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  start.disabled = true;
  try {
    const { contents, styles, wanted: settings } = request();
    const single = contents.length === 1 && styles.length === 1;
    const made = single
      ? await send("POST", "/api/jobs", { content: contents[0], style: styles[0], wanted: settings })
      : await send("POST", "/api/tables", { contents, styles, wanted: settings });
    location.assign(made.page);
  } catch (error) {
    complain(error);
    start.disabled = false;
  }
});

changed();
