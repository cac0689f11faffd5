// A line chart over the last minutes: own drawing, no library. Its figures are in its label for those who do not see it.
import { s } from "./dom.js";

const HEIGHT = 190;
const LEFT = 58;
const RIGHT = 14;
const FOOT = 24;
export const WINDOW_S = 300;

function ticks(most) {
  const rough = most / 3;
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * base).find((each) => each >= rough);
  const found = [];
  for (let value = 0; value <= most * 1.001; value += step) found.push(value);
  return found;
}

// series: [{name, kind, values: [[at, value], …]}]; planned: {value, text} or null; marks: [{at, level}]
export function chart(holder, { series, planned, marks, now, show, empty }) {
  const width = Math.max(260, holder.clientWidth);
  const narrow = width < 480;
  const TOP = narrow && planned !== null ? 40 : 24;
  const values = series.flatMap((each) => each.values.filter(([at]) => at >= now - WINDOW_S).map(([, value]) => value));
  const highest = Math.max(0, ...values);
  // What was planned is drawn where it does not press what happens into the floor.
  const planFits = planned !== null && (highest === 0 || planned.value <= highest * 4);
  const most = Math.max(highest, planFits ? planned.value : 0) * 1.08 || 1;
  const x = (at) => LEFT + ((at - now + WINDOW_S) / WINDOW_S) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - FOOT - (value / most) * (HEIGHT - FOOT - TOP);
  const parts = [];
  for (const value of ticks(most)) {
    parts.push(s("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    parts.push(s("text", { class: "small", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, show(value)));
  }
  for (const [seconds, text] of [[300, "5 min ago"], ...(narrow ? [] : [[240, "4"]]), [180, "3"], [120, "2"], [60, "1"], [0, "now"]]) {
    const anchor = seconds === 300 ? "start" : seconds === 0 ? "end" : "middle";
    parts.push(s("text", { class: "small", x: x(now - seconds), y: HEIGHT - 6, "text-anchor": anchor }, text));
  }
  for (const mark of marks) {
    if (mark.at < now - WINDOW_S) continue;
    parts.push(s("line", { class: `event-line ${mark.level}`, x1: x(mark.at), x2: x(mark.at), y1: TOP, y2: HEIGHT - FOOT }, s("title", {}, mark.text)));
  }
  if (planFits) {
    parts.push(s("line", { class: "planned-line", x1: LEFT, x2: width - RIGHT, y1: y(planned.value), y2: y(planned.value) }));
  }
  let at = LEFT;
  const told = [];
  for (const each of series) {
    const points = each.values.filter(([moment]) => moment >= now - WINDOW_S - 2);
    const last = points.length ? points[points.length - 1][1] : null;
    parts.push(s("path", { class: `line ${each.kind}`, d: line(points, x, y) }));
    const text = `${each.name} ${last === null ? "–" : show(last)}`;
    told.push(text);
    parts.push(s("text", { class: each.kind, x: at, y: 13 }, text));
    at += text.length * 7.6 + 18;
  }
  if (planned !== null) {
    parts.push(s("text", { class: "small", x: narrow ? LEFT : width - RIGHT, y: narrow ? 30 : 13, "text-anchor": narrow ? "start" : "end" }, planned.text));
    told.push(planned.text);
  }
  if (!values.length) parts.push(s("text", { class: "small", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, empty));
  const svg = s("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": told.join(", ") }, parts);
  holder.replaceChildren(svg);
}

// A gap of several seconds, in which nobody looked, is not drawn over.
function line(points, x, y) {
  let path = "";
  let before = -Infinity;
  for (const [at, value] of points) {
    path += `${at - before > 5 ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    before = at;
  }
  return path || "M0 0";
}
