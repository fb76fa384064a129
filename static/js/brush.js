// A brush over a picture: regions in layers of their own, painted by mouse, finger, pen or keys.

const LONGER_SIDE = 768; // pixels of a layer; it is stretched over the content anyway
const MOST_UNDONE = 12;
const KEY_STEP = 0.02; // of the shorter side, for each press of an arrow
export const COLOURS = ["#e6007a", "#0a84ff", "#2ca02c", "#ff9500", "#8e44ec", "#00b8b8", "#b58900", "#7f8c8d", "#d62728"];

// One region: what is painted is opaque, in the region's colour.
export class Layer {
  constructor(width, height, colour) {
    this.canvas = Object.assign(document.createElement("canvas"), { width, height });
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.colour = colour;
    this.before = [];
    this.share = 0;
  }

  get size() {
    return [this.canvas.width, this.canvas.height];
  }

  remember() {
    this.before.push(this.pen.getImageData(0, 0, ...this.size));
    if (this.before.length > MOST_UNDONE) this.before.shift();
  }

  stroke(from, to, width, erase) {
    this.pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    Object.assign(this.pen, { strokeStyle: this.colour, lineWidth: width, lineCap: "round", lineJoin: "round" });
    this.pen.beginPath();
    this.pen.moveTo(...from);
    this.pen.lineTo(to[0] + 0.01, to[1]); // a line without length has no caps in some browsers
    this.pen.stroke();
  }

  undo() {
    const last = this.before.pop();
    if (last) this.pen.putImageData(last, 0, 0);
    this.measure();
  }

  clear() {
    this.remember();
    this.pen.clearRect(0, 0, ...this.size);
    this.measure();
  }

  invert() {
    this.remember();
    this.fill("xor");
    this.measure();
  }

  fill(how) {
    this.pen.globalCompositeOperation = how;
    this.pen.fillStyle = this.colour;
    this.pen.fillRect(0, 0, ...this.size);
  }

  // Takes a grey picture as the region: white is inside.
  take(picture) {
    this.remember();
    this.pen.globalCompositeOperation = "copy";
    this.pen.drawImage(picture, 0, 0, ...this.size);
    const pixels = this.pen.getImageData(0, 0, ...this.size);
    for (let at = 0; at < pixels.data.length; at += 4) {
      const grey = (pixels.data[at] + pixels.data[at + 1] + pixels.data[at + 2]) / 3;
      pixels.data[at + 3] = (grey * pixels.data[at + 3]) / 255;
    }
    this.pen.putImageData(pixels, 0, 0);
    this.fill("source-in");
    this.measure();
  }

  measure() {
    const pixels = this.pen.getImageData(0, 0, ...this.size).data;
    let sum = 0;
    for (let at = 3; at < pixels.length; at += 4) sum += pixels[at];
    this.share = sum / 255 / (pixels.length / 4);
  }

  // The region as a grey PNG file.
  file() {
    const canvas = Object.assign(document.createElement("canvas"), { width: this.size[0], height: this.size[1] });
    const pen = canvas.getContext("2d");
    pen.drawImage(this.canvas, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, ...this.size);
    pen.globalCompositeOperation = "destination-over";
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, ...this.size);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

// The canvas over the picture: shows all layers, and paints on the one that is chosen.
export class Board {
  constructor(place, onChange) {
    this.ground = place.querySelector("[data-painting-ground]");
    this.canvas = place.querySelector("[data-painting-canvas]");
    this.pen = this.canvas.getContext("2d");
    this.onChange = onChange;
    this.layers = [];
    this.layer = null;
    this.erase = false;
    this.share = 0.12; // width of the brush, of the shorter side
    this.cursor = null;
    this.last = null;
    this.listen();
  }

  // Shows another picture; what was painted over the one before doesn't fit it. Resolves when it can be painted on.
  async open(address) {
    this.ground.src = address;
    await this.ground.decode();
    const { naturalWidth: width, naturalHeight: height } = this.ground;
    const scale = LONGER_SIDE / Math.max(width, height);
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.layers = [];
    this.layer = null;
  }

  add(colour) {
    const layer = new Layer(this.canvas.width, this.canvas.height, colour);
    this.layers.push(layer);
    return layer;
  }

  remove(layer) {
    this.layers = this.layers.filter((each) => each !== layer);
    if (this.layer === layer) this.layer = null;
  }

  get shorter() {
    return Math.min(this.canvas.width, this.canvas.height);
  }

  draw() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const layer of this.layers) {
      this.pen.globalAlpha = layer === this.layer ? 0.62 : 0.22;
      this.pen.drawImage(layer.canvas, 0, 0);
    }
    this.pen.globalAlpha = 1;
    if (this.cursor) this.ring(this.cursor);
  }

  ring(at) {
    for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
      Object.assign(this.pen, { strokeStyle: colour, lineWidth: width });
      this.pen.beginPath();
      this.pen.arc(...at, (this.share * this.shorter) / 2, 0, 2 * Math.PI);
      this.pen.stroke();
    }
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * this.canvas.width) / box.width, ((event.clientY - box.top) * this.canvas.height) / box.height];
  }

  begin(at, erase) {
    this.layer.remember();
    this.last = at;
    this.move(at, erase);
  }

  move(at, erase) {
    this.layer.stroke(this.last, at, this.share * this.shorter, erase);
    this.last = at;
    this.draw();
  }

  end() {
    if (!this.last) return;
    this.last = null;
    this.layer.measure();
    this.onChange();
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.layer || this.last || event.button > 0) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      this.begin(this.at(event), this.erase || event.buttons === 32); // 32: the other end of a pen
    });
    canvas.addEventListener("pointermove", (event) => {
      this.cursor = this.at(event);
      if (!canvas.hasPointerCapture(event.pointerId) || !this.last) return this.draw();
      const parts = event.getCoalescedEvents?.() ?? [];
      for (const part of parts.length ? parts : [event]) this.move(this.at(part), this.erase || event.buttons === 32);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.end());
    canvas.addEventListener("pointerleave", () => this.hide());
    canvas.addEventListener("blur", () => this.hide());
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  hide() {
    this.cursor = null;
    this.draw();
  }

  press(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] };
    const way = ways[event.key];
    if (!way || !this.layer) return;
    event.preventDefault();
    const step = KEY_STEP * this.shorter;
    const [x, y] = this.cursor ?? [this.canvas.width / 2, this.canvas.height / 2];
    this.cursor = [Math.min(Math.max(x + way[0] * step, 0), this.canvas.width), Math.min(Math.max(y + way[1] * step, 0), this.canvas.height)];
    if (event.key === " ") {
      this.begin(this.cursor, this.erase || event.shiftKey);
      this.end();
    }
    this.draw();
  }
}
