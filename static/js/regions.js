// Where each style goes, and what is protected: one layer for each on the board over the content.

import { uploadMasks } from "./api.js";
import { Board, COLOURS } from "./brush.js";
import { complain } from "./messages.js";

const EMPTY = 1e-4; // as the lab has it: less than this share was left by mistake
const PROTECTED = { title: "Protected" };

export class Regions {
  constructor(place, onChange) {
    this.place = place;
    this.onChange = onChange;
    this.tools = place.querySelector("[data-regions-tools]");
    this.hint = place.querySelector("[data-regions-hint]");
    this.choice = place.querySelector("[data-region-choice]");
    this.board = new Board(place.querySelector("[data-painting]"), () => this.told());
    this.content = null;
    this.regions = new Map(); // a style, or PROTECTED → its layer
    this.offered = [];
    this.chosen = null;
    this.showing = Promise.resolve();
    this.listen();
  }

  // Follows what is chosen. Several contents, or a picture for each style, have no regions in common.
  show(contents, styles, together) {
    this.showing = this.showing.then(() => this.update(contents, styles, together)).catch(complain);
  }

  async update(contents, styles, together) {
    const content = contents.length === 1 && contents[0].thumbnail && (styles.length === 1 || together) ? contents[0] : null;
    if (content && content !== this.content) {
      await this.board.open(content.thumbnail.replace(/\/320\.jpg/, "/1280.jpg"));
      this.regions.clear();
      this.offered = [];
      this.content = content;
    }
    this.tools.hidden = !content || !styles.length;
    this.hint.hidden = !this.tools.hidden;
    this.hint.textContent = this.why(contents, styles, together);
    if (this.tools.hidden) return;
    this.keep([...styles, PROTECTED]);
  }

  why(contents, styles, together) {
    if (contents.length > 1) return "Regions need a single content: they are painted over it.";
    if (styles.length > 1 && !together) return "Regions need all styles in one picture.";
    if (contents.length && styles.length) return "This content is still getting ready; it can be painted on when its picture is shown above.";
    return "Choose one content and at least one style; then paint over the content here.";
  }

  keep(wanted) {
    for (const [region, layer] of this.regions) {
      if (!wanted.includes(region)) {
        this.board.remove(layer);
        this.regions.delete(region);
      }
    }
    for (const region of wanted) {
      if (!this.regions.has(region)) this.regions.set(region, this.board.add(this.freeColour()));
    }
    if (wanted.length === this.offered.length && wanted.every((region, at) => region === this.offered[at])) return;
    this.offered = wanted;
    if (!this.regions.has(this.chosen)) this.chosen = wanted[0];
    this.choice.replaceChildren(...wanted.map((region) => this.option(region)));
    this.select(this.chosen);
  }

  // How many styles have regions of their own.
  get count() {
    return this.tools.hidden ? 0 : [...this.regions].filter(([region, layer]) => region !== PROTECTED && layer.share > EMPTY).length;
  }

  freeColour() {
    const taken = [...this.regions.values()].map((layer) => layer.colour);
    return COLOURS.find((colour) => !taken.includes(colour)) ?? COLOURS[0];
  }

  option(region) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "region", checked: region === this.chosen });
    input.addEventListener("change", () => this.select(region));
    const words = document.createElement("span");
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    dot.setAttribute("viewBox", "0 0 8 8");
    dot.setAttribute("aria-hidden", "true");
    const disc = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of [["cx", 4], ["cy", 4], ["r", 4], ["fill", this.regions.get(region).colour]]) disc.setAttribute(name, value);
    dot.append(disc);
    words.append(dot, region.title);
    label.append(input, words);
    return label;
  }

  select(region) {
    this.chosen = region;
    this.board.layer = this.regions.get(region);
    this.board.draw();
    this.tell();
  }

  tell() {
    const { layer } = this.board;
    const share = `${Math.max(1, Math.round(100 * layer.share))} %`;
    const title = this.chosen.title;
    const painted = layer.share > EMPTY;
    const words = this.chosen === PROTECTED
      ? painted ? `Protected: ${share} of the picture keeps its content.` : "Nothing is protected yet. Paint what is to keep its content: a face, a text."
      : painted ? `${title} goes to ${share} of the picture, and nowhere else.` : `${title} goes everywhere. Paint to say where it goes.`;
    this.place.querySelector("[data-region-status]").textContent = words;
    this.place.querySelector('[data-brush="undo"]').disabled = !layer.before.length;
    this.place.querySelector('[data-brush="clear"]').disabled = !painted;
  }

  listen() {
    this.place.addEventListener("input", (event) => event.stopPropagation()); // none of the form's business
    for (const tool of this.place.querySelectorAll("[name=tool]")) {
      tool.addEventListener("change", () => { this.board.erase = tool.value === "erase" && tool.checked; });
    }
    const size = this.place.querySelector("[data-brush-size]");
    size.addEventListener("input", () => { this.board.share = size.value / 100; });
    for (const button of this.place.querySelectorAll("[data-brush]")) {
      button.addEventListener("click", () => {
        this.board.layer[button.dataset.brush]();
        this.board.draw();
        this.told();
      });
    }
    const file = this.place.querySelector("[data-mask-file]");
    file.addEventListener("change", () => {
      this.takeFile(file.files[0]).catch(() => complain("This file can't be read as a mask. Choose a PNG or JPEG picture."));
      file.value = "";
    });
  }

  async takeFile(file) {
    const picture = await createImageBitmap(file);
    this.board.layer.take(picture);
    this.board.draw();
    this.told();
  }

  told() {
    this.tell();
    this.onChange();
  }

  // Sends what is painted: the masks of the styles in their order, and what is protected.
  async send(styles) {
    await this.showing;
    if (this.tools.hidden) return { masks: styles.map(() => null), protect: null };
    const painted = [...styles, PROTECTED].filter((region) => this.regions.get(region)?.share > EMPTY);
    const files = await Promise.all(painted.map(async (region) => new File([await this.regions.get(region).file()], `${region.title}.png`)));
    const taken = files.length ? await uploadMasks(files) : [];
    const id = (region) => taken[painted.indexOf(region)]?.id ?? null;
    return { masks: styles.map(id), protect: id(PROTECTED) };
  }
}
