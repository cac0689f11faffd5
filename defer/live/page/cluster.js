// The cluster on a ring, in the order in which requests pass, with the plans on it and traffic that moves.
import { bandwidth, percent, put, rate, s, say, shortened, size } from "./dom.js";

const QUEUE_SHOWN = 12;
const NARROW = 560;
const LETTER = 6.2; // width of a small one
const FULL = 0.8; // of a link's bandwidth: what waits for it begins to show

export class ClusterView {
  constructor(holder, onChoose) {
    this.holder = holder;
    this.onChoose = onChoose;
    this.key = "";
    this.nodes = new Map();
    this.edges = [];
  }

  // planned: {transfers, without} of a what-if, or null; chosen: the model whose route has labels
  draw(state, colours, planned, chosen) {
    const width = Math.max(300, Math.round(this.holder.clientWidth));
    const edges = planned ? plannedEdges(planned) : liveEdges(state, colours, chosen);
    const names = order(state, edges);
    const key = JSON.stringify([width, names, state.links.map((l) => [l.source, l.target]), edges.map((e) => [e.source, e.target, e.colour, e.label, e.faint, Boolean(planned)])]);
    if (key !== this.key) this.build(state, names, edges, width, Boolean(planned));
    this.key = key;
    this.update(state, edges, planned);
  }

  build(state, names, edges, width, planned) {
    const narrow = width < NARROW;
    const box = { w: narrow ? 124 : 158, h: 66 };
    const { height, spots } = layout(names.length, width, box);
    const places = new Map(names.map((name, at) => [name, spots[at]]));
    const focused = document.activeElement?.dataset?.device;
    this.nodes = new Map();
    const drawn = new Set();
    const links = [];
    for (const link of state.links) {
      const pair = [link.source, link.target].sort().join("\n");
      const [from, to] = [places.get(link.source), places.get(link.target)];
      if (drawn.has(pair) || !from || !to) continue;
      drawn.add(pair);
      links.push(s("line", { class: "link", x1: from.x, y1: from.y, x2: to.x, y2: to.y },
        s("title", {}, `${link.source} – ${link.target}: ${bandwidth(link.bytes_per_s)}`)));
    }
    const both = new Set(edges.map((edge) => `${edge.source}\n${edge.target}`));
    this.wide = !narrow;
    this.edges = edges.map((edge) => {
      const bent = both.has(`${edge.target}\n${edge.source}`);
      const [from, to] = [places.get(edge.source), places.get(edge.target)];
      const others = [...places].filter(([name]) => name !== edge.source && name !== edge.target).map(([, place]) => place);
      const bend = others.some((place) => between(from, to, place, box)) ? around(from, to, box, width, height) : bent ? 26 : 0;
      return this.edge(edge, from, to, box, bend, planned);
    });
    const labels = this.edges.map((edge) => edge.label);
    const boxes = names.map((name) => this.node(name, places.get(name), box));
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Devices, links and routes" },
      links, this.edges.map((edge) => edge.element), boxes, labels);
    this.holder.replaceChildren(svg);
    this.nodes.get(focused)?.element.focus({ preventScroll: true });
  }

  edge(edge, from, to, box, bending, planned) {
    const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
    const side = { x: -(to.y - from.y) / length, y: (to.x - from.x) / length };
    const bend = bending + edge.lane * 12;
    const control = { x: (from.x + to.x) / 2 + side.x * bend, y: (from.y + to.y) / 2 + side.y * bend };
    const start = border(from, control, box, 2);
    const end = border(to, control, box, 9);
    const path = `M${start.x} ${start.y} Q${control.x} ${control.y} ${end.x} ${end.y}`;
    const angle = Math.atan2(end.y - control.y, end.x - control.x);
    const tip = { x: end.x + Math.cos(angle) * 7, y: end.y + Math.sin(angle) * 7 };
    const wing = (turn) => `${tip.x - Math.cos(angle + turn) * 13} ${tip.y - Math.sin(angle + turn) * 13}`;
    const dots = s("path", { class: `dots m${edge.colour} still`, d: path });
    const element = s("g", { class: planned ? "edge planned" : edge.faint ? "edge faint" : "edge" },
      s("path", { class: `route m${edge.colour}`, d: path }), dots,
      s("path", { class: `head m${edge.colour}`, d: `M${tip.x} ${tip.y}L${wing(0.42)}L${wing(-0.42)}Z` }),
      s("title", {}, `${edge.source} → ${edge.target}: ${edge.label} a request${edge.speed ? ` over ${bandwidth(edge.speed)}` : ""}`));
    const at = { x: (start.x + 2 * control.x + end.x) / 4, y: (start.y + 2 * control.y + end.y) / 4 + edge.lane * 13 };
    const text = s("text", { class: "small", x: at.x, y: at.y + 4, "text-anchor": "middle" });
    const back = s("rect", { y: at.y - 8, height: 16, rx: 4 });
    return { element, dots, label: s("g", { class: edge.faint ? "label faint" : "label" }, back, text), text, back, middle: at.x, room: roomFor(start, end) };
  }

  node(name, at, box) {
    const left = at.x - box.w / 2;
    const top = at.y - box.h / 2;
    const parts = {
      about: s("text", { class: "small about", x: left + 10, y: top + 38 }),
      busy: s("rect", { class: "busy", x: left + 10, y: top + 46, width: 0, height: 5, rx: 2 }),
      waits: s("g", { class: "waits" }),
      title: s("title", {}),
    };
    const choose = () => this.onChoose(name);
    const element = s("g", {
      class: "node", "data-device": name, tabindex: 0, role: "button", onclick: choose,
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose();
      },
    },
    s("rect", { class: "box", x: left, y: top, width: box.w, height: box.h, rx: 8 }),
    s("circle", { class: "lamp", cx: left + box.w - 14, cy: top + 16, r: 5 }),
    s("text", { class: "name", x: left + 10, y: top + 21 }, shortened(name, Math.floor((box.w - 36) / 8.6))),
    parts.about,
    s("rect", { class: "rail", x: left + 10, y: top + 46, width: box.w - 20, height: 5, rx: 2 }),
    parts.busy, parts.waits, parts.title);
    this.nodes.set(name, { element, ...parts, room: box.w - 20, left: left + 10, top: top + 55, queued: -1 });
    return element;
  }

  update(state, edges, planned) {
    for (const device of state.devices) {
      const node = this.nodes.get(device.name);
      if (!node) continue;
      const told = about(device, state, planned);
      node.element.setAttribute("class", `node ${told.classes.join(" ")}`);
      node.element.setAttribute("aria-label", `${device.name}: ${told.long}`);
      say(node.about, shortened(this.wide ? told.short : told.short.replace(" busy", ""), Math.floor(node.room / 6)));
      say(node.title, `${device.name}: ${told.long}`);
      node.busy.setAttribute("width", String(Math.max(0, Math.min(1, told.busy)) * node.room));
      if (node.queued !== told.queued) {
        node.queued = told.queued;
        const shown = Math.min(told.queued, QUEUE_SHOWN);
        node.waits.replaceChildren(...Array.from({ length: shown }, (_, at) => s("rect", { x: node.left + at * 8, y: node.top, width: 6, height: 6, rx: 1 })));
      }
    }
    edges.forEach((edge, at) => {
      const { element, dots, label, text, back, middle, room } = this.edges[at];
      element.classList.toggle("lost", edge.lost);
      const used = edge.speed ? (edge.rate * edge.bytes) / edge.speed : 0;
      const told = [...(used >= 0.005 ? [`${edge.label} · ${percent(used)}`] : []), edge.label, size(edge.bytes)];
      const shown = told.find((each) => each.length * LETTER + 6 <= room) ?? told[told.length - 1];
      element.classList.toggle("hot", used >= FULL);
      label.classList.toggle("hot", used >= FULL);
      if (text.textContent !== shown) {
        say(text, shown);
        back.setAttribute("x", String(middle - shown.length * LETTER / 2 - 3));
        back.setAttribute("width", String(shown.length * LETTER + 6));
      }
      dots.classList.toggle("still", !(edge.rate > 0));
      // From one dot in two seconds for a trickle to a stream: the logarithm keeps both visible.
      const period = (2.2 / (1 + Math.log10(1 + edge.rate) * 2.2)).toFixed(2);
      if (dots.dataset.period !== period) {
        dots.dataset.period = period;
        put(dots, "--period", `${period}s`);
      }
    });
  }
}

// Boxes on a ring where they have room there, else around a grid; both clockwise, so that requests run one way round.
function layout(count, width, box) {
  const narrow = width < NARROW;
  for (let height = Math.max(250, 150 + count * 42); !narrow && height < 560; height += 30) {
    const ring = { x: width / 2 - box.w / 2 - 6, y: height / 2 - box.h / 2 - 8 };
    const spots = Array.from({ length: count }, (_, at) => {
      const angle = Math.PI + (2 * Math.PI * at) / count;
      return { x: width / 2 + ring.x * Math.cos(angle), y: height / 2 + ring.y * Math.sin(angle) };
    });
    const crowded = spots.some((a, at) => spots.some((b, other) => other > at && Math.abs(a.x - b.x) < box.w + 24 && Math.abs(a.y - b.y) < box.h + 24));
    if (!crowded) return { height, spots };
  }
  const columns = Math.min(count, narrow ? 2 : Math.max(2, Math.floor((width + 60) / (box.w + 60))));
  const rows = count <= columns ? 1 : Math.max(2, Math.ceil((count - 2 * columns + 4) / 2));
  const pitch = { x: columns > 1 ? (width - box.w - 8) / (columns - 1) : 0, y: box.h + 46 };
  const around = [];
  for (let x = 0; x < columns; x += 1) around.push([x, 0]);
  for (let y = 1; y < rows; y += 1) around.push([columns - 1, y]);
  if (rows > 1) for (let x = columns - 2; x >= 0; x -= 1) around.push([x, rows - 1]);
  for (let y = rows - 2; y > 0; y -= 1) around.push([0, y]);
  return { height: (rows - 1) * pitch.y + box.h + 12, spots: around.slice(0, count).map(([x, y]) => ({ x: 4 + box.w / 2 + x * pitch.x, y: 6 + box.h / 2 + y * pitch.y })) };
}

function order(state, edges) {
  const used = [state.source, ...edges.flatMap((edge) => [edge.source, edge.target])];
  const all = [...new Set([...used, ...state.devices.map((device) => device.name)])];
  return all.filter((name) => state.devices.some((device) => device.name === name)).slice(0, 16);
}

function liveEdges(state, colours, chosen) {
  const found = [];
  for (const each of state.deployments) {
    each.transfers.forEach((transfer) => {
      for (let at = 0; at + 1 < transfer.path.length; at += 1) {
        const [source, target] = [transfer.path[at], transfer.path[at + 1]];
        const speed = state.links.find((link) => link.source === source && link.target === target)?.bytes_per_s ?? 0;
        const label = `${transfer.codec === "raw" ? "" : `${transfer.codec} · `}${size(transfer.bytes)}`;
        const same = found.find((edge) => edge.source === source && edge.target === target && edge.model === each.model);
        if (same) {
          same.rate += each.rate;
          same.bytes = Math.max(same.bytes, transfer.bytes);
          same.lost = same.lost && each.state === "lost";
          continue;
        }
        const lane = found.filter((edge) => edge.source === source && edge.target === target).length;
        found.push({ source, target, label, speed, bytes: transfer.bytes, model: each.model, colour: colours.get(each.model) ?? 0, rate: each.rate, lost: each.state === "lost", lane, faint: each.model !== chosen });
      }
    });
  }
  return found;
}

function plannedEdges(planned) {
  return planned.transfers.flatMap((transfer) => transfer.path.slice(1).map((target, at) => (
    { source: transfer.path[at], target, label: size(transfer.bytes), speed: 0, bytes: transfer.bytes, colour: 2, rate: 0, lost: false, lane: 0, model: "", faint: false })));
}

function about(device, state, planned) {
  const classes = [];
  const source = device.name === state.source;
  let stages = state.deployments.flatMap((each) => each.stages.map((stage, at) => ({ ...stage, number: at + 1 })).filter((stage) => stage.device === device.name));
  if (planned) stages = planned.stages.map((stage, at) => ({ ...stage, number: at + 1, busy: 0, queued: 0 })).filter((stage) => stage.device === device.name);
  const busy = stages.reduce((sum, stage) => sum + stage.busy, 0);
  const queued = stages.reduce((sum, stage) => sum + stage.queued, 0);
  const bad = device.agent && !["alive", "connecting"].includes(device.state);
  if (device.state === "alive" || source) classes.push("alive");
  if (bad) classes.push("lost");
  if (stages.some((stage) => stage.bottleneck)) classes.push("hot");
  if (!stages.length) classes.push("none");
  if (!stages.length && !source) classes.push("idle");
  if (planned?.without.includes(device.name)) classes.push("gone");
  const runs = [...new Set(stages.map((stage) => stage.number))].join(", ");
  const what = stages.length ? `stage ${runs}` : source ? "requests, results" : "no stage";
  const short = bad ? device.state || "unknown" : stages.length && !planned ? `${what} · ${percent(busy)} busy` : what;
  const memory = device.memory_bytes ? `, ${size(device.resident_bytes)} taken, ${size(device.memory_bytes)} for partitions` : "";
  const long = `${device.state || "no agent"}, ${what}${stages.length && !planned ? `, ${percent(busy)} busy, ${queued} waiting, ${rate(Math.max(...stages.map((stage) => stage.rate)))}` : ""}${memory}`;
  return { classes, busy, queued, short, long };
}

// How wide a label may be that leaves something of its line: one that runs up or down is crossed, not covered.
function roomFor(start, end) {
  const [dx, dy] = [Math.abs(end.x - start.x), Math.abs(end.y - start.y)];
  return dx > dy ? Math.max(dx - 36, 0) : Infinity;
}

// Whether a box lies on the straight way between two others.
function between(from, to, place, box) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const part = ((place.x - from.x) * dx + (place.y - from.y) * dy) / (dx * dx + dy * dy || 1);
  if (part <= 0 || part >= 1) return false;
  return Math.abs(from.x + part * dx - place.x) < box.w / 2 && Math.abs(from.y + part * dy - place.y) < box.h / 2;
}

// How far a line is bent to pass such a box, on the side where the drawing's middle is.
function around(from, to, box, width, height) {
  const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
  const side = { x: -(to.y - from.y) / length, y: (to.x - from.x) / length };
  const inward = side.x * (width / 2 - (from.x + to.x) / 2) + side.y * (height / 2 - (from.y + to.y) / 2);
  return Math.sign(inward || 1) * 2 * (Math.abs(side.x) * box.w / 2 + Math.abs(side.y) * box.h / 2 + 14);
}

// Where the line from a box's middle to a point leaves the box, and a little further.
function border(from, to, box, gap) {
  const dx = to.x - from.x;
  const dy = to.y - from.y;
  const scale = Math.min(dx ? box.w / 2 / Math.abs(dx) : Infinity, dy ? box.h / 2 / Math.abs(dy) : Infinity);
  const length = Math.hypot(dx, dy) || 1;
  return { x: from.x + dx * scale + (dx / length) * gap, y: from.y + dy * scale + (dy / length) * gap };
}
