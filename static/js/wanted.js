// The settings of the form, as the lab takes them; what wasn't touched stays as the preset has it.

export class Wanted {
  constructor(form) {
    this.form = form;
    this.base = form.dataset.like ? JSON.parse(form.dataset.like) : null;
    this.presets = JSON.parse(form.dataset.experts);
    this.touched = new Set();
    form.addEventListener("input", (event) => this.touched.add(event.target.name));
  }

  get fields() {
    return this.form.elements;
  }

  get dials() {
    return [...this.form.querySelectorAll("[data-dial]")];
  }

  // Settings that a picture brings along.
  restore(settings) {
    this.base = settings;
    this.touched.clear();
    const preset = this.fields.preset;
    if (!preset.querySelector('option[value=""]')) preset.prepend(new Option("As in the picture", ""));
    preset.value = "";
    this.fields.level.value = String(Math.min(settings.levels, 3));
    this.fields.colour.value = settings.colour;
    this.fields.seed.value = settings.seed;
    for (const dial of this.dials) dial.value = dial.dataset.preset;
    for (const field of this.form.querySelectorAll("[data-expert]")) field.value = "";
    const networks = [...this.fields.network.options].map((option) => option.value);
    this.fields.network.value = networks.includes(settings.network) ? settings.network : "auto";
  }

  read() {
    const fields = this.fields;
    const wanted = { level: Number(fields.level.value), dials: {}, experts: {} };
    if (fields.preset.value) wanted.preset = fields.preset.value;
    else wanted.settings = this.base;
    for (const dial of this.dials) {
      if (dial.value !== dial.dataset.preset) wanted.dials[dial.dataset.dial] = Number(dial.value);
    }
    for (const field of this.form.querySelectorAll("[data-expert]")) {
      if (field.value.trim()) wanted.experts[field.dataset.expert] = field.value;
    }
    if (this.touched.has("colour")) wanted.colour = fields.colour.value;
    if (this.touched.has("seed") && fields.seed.value) wanted.seed = Number(fields.seed.value);
    if (this.touched.has("network")) wanted.network = fields.network.value;
    return wanted;
  }

  // Says where the dials stand, and what experts' fields are if they are left empty.
  describe() {
    for (const dial of this.dials) {
      const output = this.form.querySelector(`[data-for="${CSS.escape(dial.name)}"]`);
      output.textContent = dial.value === dial.dataset.preset ? `${dial.value} · as the preset` : dial.value;
    }
    const known = this.presets[this.fields.preset.value] ?? valuesOf(this.base, Object.values(this.presets)[0]);
    for (const field of this.form.querySelectorAll("[data-expert]")) {
      const value = known[field.dataset.expert];
      const empty = field.querySelector?.("[data-as-preset]");
      if (empty) empty.textContent = `${value} (as the preset)`;
      else field.placeholder = value;
    }
  }
}

function valuesOf(settings, keys) {
  const text = (value) => (Array.isArray(value) ? value.join(", ") : String(value ?? ""));
  return Object.fromEntries(Object.keys(keys).map((key) => [key, text(key.split(".").reduce((found, part) => found?.[part], settings))]));
}
