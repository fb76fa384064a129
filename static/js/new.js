// Asking for pictures: dropped, pasted, chosen from files or from the shelf; an estimate before anything begins.

import { send, upload } from "./api.js";
import { complain, tell } from "./messages.js";
import { Regions } from "./regions.js";
import { Sweep } from "./sweep.js";
import { Wanted } from "./wanted.js";

const ESTIMATE_MS = 250;

const form = document.querySelector("[data-commission]");
const start = form.querySelector("[data-start]");
const estimate = form.querySelector("[data-estimate]");
const zones = Object.fromEntries([...form.querySelectorAll("[data-zone]")].map((zone) => [zone.dataset.zone, zone]));
const chosen = { content: [], style: [] };
const mostStyles = Number(form.dataset.mostStyles);
const wanted = new Wanted(form);
const regions = new Regions(form.querySelector("[data-regions]"), estimated);
const sweep = new Sweep(form.querySelector("[data-sweep]"), order);
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
  const frame = Object.assign(document.createElement("div"), { className: "frame" });
  if (picture.thumbnail) frame.append(Object.assign(document.createElement("img"), { src: picture.thumbnail, alt: "" }));
  item.append(frame, Object.assign(document.createElement("span"), { className: "name", textContent: picture.title }));
  const button = Object.assign(document.createElement("button"), { type: "button", className: "icon", textContent: "×" });
  button.setAttribute("aria-label", `Leave out ${picture.title}`);
  button.addEventListener("click", () => remove(kind, picture));
  frame.append(button);
  if (kind === "style") {
    const counts = Object.assign(document.createElement("div"), { className: "counts" });
    counts.append(number("weight", "Weight", picture, { min: 0 }), number("scale", "Scale", picture, { min: 0.25, max: 4 }));
    item.append(counts);
  }
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

// Several styles

function isTogether() {
  return chosen.style.length > 1 && form.elements.mix.value === "together";
}

// The styles of one picture, each with how it counts.
function styleReference(picture) {
  return { ...reference(picture), weight: picture.weight ?? 1, scale: picture.scale ?? 1 };
}

function number(name, title, picture, limits) {
  const label = Object.assign(document.createElement("label"), { className: name, textContent: title });
  const input = Object.assign(document.createElement("input"), { type: "number", step: "any", value: picture[name] ?? 1, ...limits });
  input.setAttribute("aria-label", `${title} of ${picture.title}`);
  input.addEventListener("input", () => { picture[name] = Number(input.value); });
  label.append(input);
  return label;
}

// Settings

function restore(picture) {
  wanted.restore(picture.settings);
  tell(`Settings restored from ${picture.title}.`);
  changed();
}

form.addEventListener("input", changed);

// Estimate and start

function request() {
  const mix = chosen.style.length === 1 || isTogether();
  return { contents: chosen.content.map(reference), styles: chosen.style.map(styleReference), mix, wanted: wanted.read() };
}

// What one picture is asked for with; `whole`: with the regions, which are sent for it.
function order(whole = false) {
  const { contents, styles, mix, wanted: settings } = request();
  if (contents.length !== 1 || !styles.length || !mix) return null;
  return whole ? withRegions(contents[0], styles, settings) : { content: contents[0], styles, wanted: settings };
}

async function withRegions(content, styles, settings) {
  const { masks, protect } = await regions.send(chosen.style);
  const painted = styles.map((style, number) => (masks[number] ? { ...style, mask: masks[number] } : style));
  return { content, styles: painted, protect, film: form.elements.film.checked, wanted: settings };
}

function changed() {
  wanted.describe();
  const several = chosen.style.length > 1;
  zones.style.querySelector("[data-mix]").hidden = !several;
  zones.style.classList.toggle("together", isTogether());
  regions.show(chosen.content, chosen.style, isTogether());
  const count = chosen.content.length * (isTogether() ? 1 : chosen.style.length);
  start.textContent = count > 1 ? `Begin ${count} pictures` : "Begin";
  sweep.ask();
  estimated();
}

function missingPictures() {
  return [["content", "a content"], ["style", "a style"]].filter(([kind]) => !chosen[kind].length).map(([, name]) => name);
}

// Asks again what it would need, soon; there is nothing to begin with before.
function estimated() {
  clearTimeout(timer);
  asking?.abort();
  start.disabled = true;
  const missing = missingPictures();
  if (missing.length) {
    estimate.textContent = `Choose ${missing.join(" and ")}.`;
  } else if (isTogether() && chosen.style.length > mostStyles) {
    estimate.textContent = `One picture has at most ${mostStyles} styles. Leave out ${chosen.style.length - mostStyles}.`;
  } else {
    timer = setTimeout(ask, ESTIMATE_MS);
  }
}

async function ask() {
  asking = new AbortController();
  try {
    const asked = { ...request(), regions: regions.count };
    estimate.textContent = (await send("POST", "/api/estimate", asked, { signal: asking.signal })).text;
    start.disabled = false;
  } catch (error) {
    if (error.name !== "AbortError") estimate.textContent = error.message;
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  start.disabled = true;
  try {
    const single = await order(true);
    const made = single ? await send("POST", "/api/jobs", single) : await send("POST", "/api/tables", request());
    location.assign(made.page);
  } catch (error) {
    complain(error);
    start.disabled = false;
  }
});

changed();
