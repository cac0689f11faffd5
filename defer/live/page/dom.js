// Elements, and figures as people read them. Attributes named style are refused by the page's policy: use `put`.
const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map((child) => (typeof child === "object" ? child : String(child))));
  return element;
}

export const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
export const find = (id) => document.getElementById(id);
export const put = (element, name, value) => element.style.setProperty(name, value);

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function significant(value, digits = 3) {
  if (value === 0) return "0";
  const whole = Math.floor(Math.log10(Math.abs(value))) + 1;
  return whole >= digits ? String(Math.round(value)) : String(Number(value.toPrecision(digits)));
}

export function duration(seconds) {
  if (!(seconds > 0)) return "0 s";
  if (seconds < 1e-3) return `${significant(seconds * 1e6)} µs`;
  if (seconds < 1) return `${significant(seconds * 1e3)} ms`;
  if (seconds < 120) return `${significant(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; bytes >= 1024 && at < units.length - 1; at += 1) bytes /= 1024;
  return `${significant(bytes)} ${units[at]}`;
}

export const bandwidth = (bytes) => {
  const bits = bytes * 8;
  return bits >= 1e9 ? `${significant(bits / 1e9)} Gbit/s` : bits >= 1e6 ? `${significant(bits / 1e6)} Mbit/s` : bits > 0 ? `${significant(bits / 1e3)} kbit/s` : "0 bit/s";
};
export const rate = (perSecond) => `${significant(perSecond)}/s`;
export const percent = (part) => `${Math.round(part * 100)} %`;
export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
// Deployments are numbered by the clock; their ends tell them apart.
export const brief = (text) => text.replace(/\b\d{9,}(\d{4})\b/g, "…$1");
// Names that differ differ at their ends more often than in the middle.
export function shortened(text, most) {
  const last = Math.floor((most - 1) / 3);
  return text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1 - last))}…${text.slice(text.length - last)}`;
}
