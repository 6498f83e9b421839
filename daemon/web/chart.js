// Drawings as SVG, with the same numbers as text for who does not see them.

const SVG = "http://www.w3.org/2000/svg";

export function shape(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A score beside its threshold, both from 0 to 1. */
export function scoreBar(score, threshold, route, label) {
  const x = (value) => 4 + 92 * value;
  return shape(
    "svg", { viewBox: "0 0 100 16", role: "img", "aria-label": label },
    shape("title", {}, label),
    shape("line", { x1: 4, x2: 96, y1: 8, y2: 8, class: "axis" }),
    shape("circle", { cx: x(score), cy: 8, r: 5, class: `fill-${route}` }),
    shape("line", { x1: x(threshold), x2: x(threshold), y1: 1, y2: 15, class: "limit" }),
  );
}

const WIDTH = 640;
const HEIGHT = 176;
const LEFT = 34;
const BOTTOM = 22;

/** Stacked bars: `bars` are `{label, title, parts: {local, cloud, failed}}`, oldest first. */
export function stackedBars(bars, label) {
  const most = Math.max(1, ...bars.map(({ parts }) => parts.local + parts.cloud + parts.failed));
  const step = niceStep(most);
  const top = Math.ceil(most / step) * step;
  const y = (count) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - 8) * count) / top;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (let count = 0; count <= top; count += step) {
    svg.append(
      shape("line", { x1: LEFT, x2: WIDTH, y1: y(count), y2: y(count), class: "grid" }),
      shape("text", { x: LEFT - 6, y: y(count) + 4, "text-anchor": "end" }, String(count)),
    );
  }
  const width = (WIDTH - LEFT) / bars.length;
  const every = Math.ceil(bars.length / 8);
  bars.forEach(({ label: name, title, parts }, index) => {
    const x = LEFT + index * width;
    let height = 0;
    const group = shape("g", {}, shape("title", {}, title));
    for (const kind of ["local", "cloud", "failed"]) {
      if (!parts[kind]) continue;
      const lower = y(height);
      height += parts[kind];
      const box = { x: x + width * 0.12, width: width * 0.76, y: y(height), height: lower - y(height), rx: 2 };
      group.append(shape("rect", { ...box, class: `fill-${kind}` }));
    }
    svg.append(group);
    if (index % every === 0) {
      svg.append(shape("text", { x: x + width / 2, y: HEIGHT - 6, "text-anchor": "middle" }, name));
    }
  });
  return svg;
}

function niceStep(most) {
  const raw = most / 4;
  const power = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw);
}
