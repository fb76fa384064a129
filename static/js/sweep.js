// A sweep: one picture, small, under several values of one or two settings.

import { send } from "./api.js";
import { complain } from "./messages.js";

const SEPARATOR = /[;]/;

function values(text) {
  return text.split(SEPARATOR.test(text) ? ";" : ",").map((value) => value.trim()).filter(Boolean);
}

export class Sweep {
  // `order` gives what one picture of the sweep is asked for with, or nothing where there can't be a sweep.
  constructor(place, order) {
    this.place = place;
    this.order = order;
    this.start = place.querySelector("[data-sweep-start]");
    this.estimate = place.querySelector("[data-sweep-estimate]");
    this.level = place.querySelector("[data-sweep-level]");
    for (const select of place.querySelectorAll("[data-axis]")) {
      select.addEventListener("change", () => { this.field(select.dataset.axis).value = select.selectedOptions[0].dataset.values ?? ""; });
    }
    this.start.addEventListener("click", () => this.begin());
    place.addEventListener("toggle", () => this.ask());
  }

  field(axis) {
    return this.place.querySelector(`[data-values-of="${axis}"]`);
  }

  axis(name) {
    const setting = this.place.querySelector(`[data-axis="${name}"]`).value;
    return setting ? { setting, values: this.field(name).value } : null;
  }

  get count() {
    return ["rows", "columns"].reduce((product, name) => product * (this.axis(name) ? values(this.axis(name).values).length : 1), 1);
  }

  wanted(settings) {
    return { ...settings, level: Number(this.level.value) };
  }

  async ask() {
    if (!this.place.open) return;
    const { count } = this;
    const request = this.order();
    const most = Number(this.place.dataset.most);
    this.start.disabled = true;
    this.start.textContent = count > 1 ? `Begin ${count} small pictures` : "Begin the sweep";
    if (!request) {
      this.estimate.textContent = "A sweep needs one content, and one style or several in one picture.";
    } else if (!count || count > most) {
      this.estimate.textContent = count ? `These would be ${count} pictures; a sweep has at most ${most}.` : "Give the values, with commas between.";
    } else {
      try {
        const { content, styles, wanted } = request;
        const body = { contents: [content], styles, mix: true, times: count, wanted: this.wanted(wanted) };
        this.estimate.textContent = (await send("POST", "/api/estimate", body)).text;
        this.start.disabled = false;
      } catch (error) {
        this.estimate.textContent = error.message;
      }
    }
  }

  async begin() {
    this.start.disabled = true;
    try {
      const request = await this.order(true);
      const body = { ...request, wanted: this.wanted(request.wanted), rows: this.axis("rows"), columns: this.axis("columns") };
      delete body.film;
      location.assign((await send("POST", "/api/sweeps", body)).page);
    } catch (error) {
      complain(error);
      this.start.disabled = false;
    }
  }
}
