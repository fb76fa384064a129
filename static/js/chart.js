// Losses over time: one line per level, on a logarithmic scale, as plain SVG.

const WIDTH = 960;
const HEIGHT = 320;
const LEFT = 56;
const RIGHT = 110;
const TOP = 12;
const BOTTOM = 30;
const REDRAW_MS = 500;

function node(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function short(value) {
  return value >= 1000 || value < 0.01 ? value.toExponential(0).replace("e", "·10^").replace("^+", "^") : String(Number(value.toPrecision(2)));
}

function steps(end) {
  const rough = Math.max(end, 1) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, number) => number * step);
}

export class Chart {
  constructor(place, weights) {
    this.place = place;
    this.weights = weights;
    this.points = [];
    this.marks = [];
    this.drawing = 0;
  }

  // Where the weights were changed on the way, and what they were from then on.
  mark(steering) {
    this.marks = steering.filter((each) => each.iteration !== null);
  }

  set(points) {
    this.points = points;
    this.draw();
  }

  add(view) {
    const last = this.points.at(-1);
    if (last && last.iteration >= view.iteration) this.points = this.points.filter((point) => point.iteration < view.iteration);
    this.points.push({ iteration: view.iteration, seconds: view.seconds, loss: view.loss, levels: view.levels });
    this.drawing ||= setTimeout(() => { this.drawing = 0; this.draw(); }, REDRAW_MS);
  }

  // The weighted sum of a level's terms, as the optimisation sees them.
  value(level, iteration) {
    const { content_weight: content, style_weight: style } = this.marks.findLast((each) => each.iteration < iteration) ?? this.weights;
    return content * level.content + style * level.style + this.weights.tv_weight * level.tv;
  }

  lines() {
    const lines = new Map();
    for (const point of this.points) {
      for (const level of point.levels) {
        const value = this.value(level, point.iteration);
        if (value > 0) {
          if (!lines.has(level.level)) lines.set(level.level, []);
          lines.get(level.level).push([point.seconds, value]);
        }
      }
    }
    return lines;
  }

  draw() {
    const lines = this.lines();
    const values = [...lines.values()].flat();
    if (values.length < 2) {
      this.place.replaceChildren(Object.assign(document.createElement("p"), { className: "small", textContent: "Nothing to draw yet." }));
      return;
    }
    const end = Math.max(...values.map(([seconds]) => seconds), 1e-3);
    const logs = values.map(([, value]) => Math.log10(value));
    const [low, high] = [Math.min(...logs) - 0.05, Math.max(...logs) + 0.05];
    const x = (seconds) => LEFT + ((WIDTH - LEFT - RIGHT) * seconds) / end;
    const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - Math.log10(value))) / (high - low);
    const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": this.summary(lines) });
    svg.append(...this.axes(x, y, end, low, high));
    for (const [level, points] of lines) svg.append(...this.line(level, points, x, y));
    for (const each of this.marks) svg.append(...this.moment(each, x));
    this.place.replaceChildren(svg);
  }

  axes(x, y, end, low, high) {
    const parts = [];
    for (const seconds of steps(end)) {
      parts.push(node("text", { x: x(seconds), y: HEIGHT - 8, "text-anchor": "middle" }, `${Number(seconds.toPrecision(3))} s`));
    }
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power += 1) {
      for (const factor of high - low > 1.5 ? [1] : [1, 2, 5]) ticks.push(factor * 10 ** power);
    }
    for (const value of ticks.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high)) {
      parts.push(node("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
      parts.push(node("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)));
    }
    return parts;
  }

  moment(mark, x) {
    const point = this.points.findLast((each) => each.iteration <= mark.iteration);
    if (!point) return [];
    const at = x(point.seconds).toFixed(1);
    const line = node("line", { class: "mark", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM });
    line.append(node("title", {}, mark.text));
    const words = mark.text.slice(mark.text.indexOf(": ") + 2);
    const left = point.seconds > this.points.at(-1).seconds / 2;
    return [line, node("text", { x: Number(at) + (left ? -4 : 4), y: TOP + 10, "text-anchor": left ? "end" : "start" }, words)];
  }

  line(level, points, x, y) {
    const path = points.map(([seconds, value], number) => `${number ? "L" : "M"}${x(seconds).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const [seconds, value] = points.at(-1);
    return [
      node("path", { d: path, class: `level-${level}` }),
      node("text", { x: x(seconds) + 8, y: y(value) + 4, class: `level-${level}` }, `level ${level} · ${256 * 2 ** level}`),
    ];
  }

  summary(lines) {
    const parts = [...lines].map(([level, points]) => `level ${level} from ${points[0][1].toPrecision(2)} to ${points.at(-1)[1].toPrecision(2)}`);
    return `Loss over time: ${parts.join(", ")}`;
  }
}
