// Drawings as SVG, with the same numbers as text for who does not see them.

const SVG = "http://www.w3.org/2000/svg";

export function shape(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// How far from the threshold a score is drawn; most lie closer, for a calibrated router is seldom sure.
const REACH = 0.1;

/** A score, from 0 to 1, beside its threshold, which is in the middle. */
export function scoreBar(score, threshold, route, label) {
  const x = 50 + 45 * Math.max(-1, Math.min(1, (score - threshold) / REACH));
  return shape(
    "svg", { viewBox: "0 0 100 16", role: "img", "aria-label": label },
    shape("title", {}, label),
    shape("line", { x1: 4, x2: 96, y1: 8, y2: 8, class: "axis" }),
    shape("circle", { cx: x, cy: 8, r: 5, class: `fill-${route}` }),
    shape("line", { x1: 50, x2: 50, y1: 1, y2: 15, class: "limit" }),
  );
}

const HEIGHT = 176;
const LEFT = 34;
const BOTTOM = 22;

const LABEL = 76;

/** Stacked bars, `width` pixels wide: `bars` are `{label, title, parts: {local, cloud, failed}}`, oldest first. */
export function stackedBars(bars, label, width) {
  const most = Math.max(1, ...bars.map(({ parts }) => parts.local + parts.cloud + parts.failed));
  const step = niceStep(most);
  const top = Math.ceil(most / step) * step;
  const y = (count) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - 8) * count) / top;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
  for (let count = 0; count <= top; count += step) {
    svg.append(
      shape("line", { x1: LEFT, x2: width, y1: y(count), y2: y(count), class: "grid" }),
      shape("text", { x: LEFT - 6, y: y(count) + 4, "text-anchor": "end" }, String(count)),
    );
  }
  const space = (width - LEFT) / bars.length;
  const every = Math.ceil(LABEL / space);
  bars.forEach(({ label: name, title, parts }, index) => {
    const x = LEFT + index * space;
    let height = 0;
    const group = shape("g", {}, shape("title", {}, title));
    for (const kind of ["local", "cloud", "failed"]) {
      if (!parts[kind]) continue;
      const lower = y(height);
      height += parts[kind];
      const box = { x: x + space * 0.12, width: space * 0.76, y: y(height), height: lower - y(height), rx: 2 };
      group.append(shape("rect", { ...box, class: `fill-${kind}` }));
    }
    svg.append(group);
    if (index % every === 0) {
      svg.append(shape("text", { x: x + space / 2, y: HEIGHT - 6, "text-anchor": "middle" }, name));
    }
  });
  return svg;
}

function niceStep(most) {
  const raw = most / 4;
  const power = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw);
}
