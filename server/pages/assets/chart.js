// A line chart as inline SVG: its lines, a scale, and the same in words for those who do not see it.

import { brief, element } from "./elements.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT] = [320, 96, 34, 8, 16, 4];
const CLASSES = ["first", "second"];

// lines: [{name, points: [[x, y or null], ...]}], one or two; a null is a gap. from, to: the ends of x, and their names.
export function chart({ title, unit, lines, from, to, ends }) {
  const highest = Math.max(0, ...lines.flatMap((line) => line.points.map(([, y]) => y ?? 0)));
  const top = roundUp(highest);
  const x = (value) => LEFT + ((value - from) / (to - from || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
  const drawn = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": inWords(title, unit, lines, highest) });
  for (const value of [0, top / 2, top]) {
    drawn.append(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    drawn.append(shape("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, brief(value)));
  }
  drawn.append(shape("text", { x: LEFT, y: HEIGHT - 3 }, ends[0]));
  drawn.append(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, ends[1]));
  lines.forEach((line, index) => {
    for (const run of runs(line.points)) {
      const at = run.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`);
      if (run.length > 1) drawn.append(shape("polyline", { class: CLASSES[index], points: at.join(" ") }));
      else drawn.append(shape("circle", { class: `mark ${CLASSES[index]}`, cx: x(run[0][0]), cy: y(run[0][1]), r: 1.8 }));
    }
  });
  return drawn;
}

// A chart with its caption: what it shows, and the latest value of every line.
export function figure(options) {
  const latest = options.lines.map((line, index) => {
    const value = lastOf(line.points);
    return element("span", {}, element("span", { class: `key ${CLASSES[index]}` }), `${line.name} `,
      element("strong", {}, value === null ? "–" : brief(value)), value === null ? "" : ` ${options.unit}`);
  });
  const caption = element("figcaption", {}, element("strong", {}, options.title), element("span", { class: "now" }, ...latest));
  return element("figure", { class: "chart" }, caption, chart(options));
}

function inWords(title, unit, lines, highest) {
  const parts = lines.map((line) => {
    const latest = lastOf(line.points);
    return latest === null ? `${line.name}: nothing now` : `${line.name}: now ${brief(latest)} ${unit}`;
  });
  return `${title}. ${parts.join(", ")}; highest shown ${brief(highest)} ${unit}`;
}

function lastOf(points) {
  return points.length ? points.at(-1)[1] : null;
}

function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point[1] === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((run) => run.length);
}

function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value * 0.999) * power;
}

function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
