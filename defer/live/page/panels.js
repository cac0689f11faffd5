// Stage bars and events.
import { bandwidth, brief, clock, duration, h, percent, put, rate, say } from "./dom.js";

const SIGNS = { info: "·", warning: "▲", error: "■" };
const EVENTS_SHOWN = 120;

// Breaks between its parts only.
const unbroken = (text) => text.split(" · ").map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");

export class StageBars {
  constructor(holder) {
    this.holder = holder;
    this.key = "";
    this.rows = new Map();
  }

  // colours: of the models' routes, empty where there is one model
  draw(state, colours) {
    const shown = state.deployments;
    const waiting = state.models.filter((model) => model.state === "announced");
    const key = JSON.stringify([shown.map((each) => [each.epoch, each.model, each.stages.map((stage) => stage.device)]), waiting.map((model) => model.name), [...colours]]);
    if (key !== this.key) this.build(shown, waiting, colours);
    this.key = key;
    for (const each of shown) this.update(each);
    for (const model of waiting) say(this.rows.get(model.name), `${model.name}: not ready, ${model.reason}`);
  }

  build(shown, waiting, colours) {
    this.rows = new Map();
    const parts = shown.flatMap((each) => {
      const state = h("span", { class: "state" });
      const head = h("span", {});
      this.rows.set(each.epoch, { state, head });
      const swatch = colours.has(each.model) ? h("span", { class: `swatch m${colours.get(each.model)}` }) : null;
      return [h("h3", {}, swatch, `${each.model} `, state, h("span", { class: "quiet", title: String(each.epoch) }, ` ${brief(String(each.epoch))}`), each.fraction < 1 ? ` (${percent(each.fraction)} of the requests)` : ""), h("p", { class: "quiet" }, head),
        ...each.stages.map((stage, at) => this.row(each.epoch, stage, at))];
    });
    for (const model of waiting) {
      const line = h("p", {});
      this.rows.set(model.name, line);
      parts.push(line);
    }
    if (!parts.length) parts.push(h("p", { class: "quiet" }, "No model is deployed; defer deploy MODEL deploys one."));
    this.holder.replaceChildren(...parts);
  }

  row(epoch, stage, at) {
    const fill = h("div", { class: "fill" });
    const track = h("div", { class: "track", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": `Stage ${at + 1} on ${stage.device}, busy` }, fill);
    const figure = h("span", { class: "figure" });
    const about = h("span", { class: "about" });
    const row = h("div", { class: "stage" }, h("span", { class: "quiet" }, at + 1), h("span", { class: "name", title: stage.device }, stage.device), track, figure, about);
    this.rows.set(`${epoch}/${at}`, { row, fill, track, figure, about });
    return row;
  }

  update(each) {
    const { state, head } = this.rows.get(each.epoch);
    state.className = `state ${each.state}`;
    say(state, each.state);
    const latency = each.answered ? `, p50 ${duration(each.p50_s)}, p99 ${duration(each.p99_s)}` : "";
    const failed = each.failed ? `, ${each.failed} failed` : "";
    say(head, each.state === "lost" ? each.reason : `${rate(each.rate)}${latency}; ${each.waiting} waiting, ${each.in_flight} under way${failed}`);
    each.stages.forEach((stage, at) => {
      const { row, fill, track, figure, about } = this.rows.get(`${each.epoch}/${at}`);
      row.classList.toggle("bottleneck", stage.bottleneck);
      put(fill, "width", `${Math.round(stage.busy * 100)}%`);
      track.setAttribute("aria-valuenow", String(Math.round(stage.busy * 100)));
      say(figure, percent(stage.busy));
      const parts = [stage.bottleneck ? h("span", { class: "mark" }, "bottleneck · ") : null,
        unbroken(`run ${stage.items ? duration(stage.run_s) : "–"} (planned ${duration(stage.predicted_s)}) · ${stage.queued} waiting · out ${bandwidth(stage.bytes_per_s)}`)];
      const text = parts.map((part) => (part === null ? "" : part.textContent ?? part)).join("");
      if (about.textContent !== text) about.replaceChildren(...parts.filter((part) => part !== null));
    });
  }
}

export class EventList {
  constructor(holder) {
    this.holder = holder;
    this.marks = [];
  }

  clear() {
    this.holder.replaceChildren();
    this.marks = [];
  }

  add(events) {
    for (const event of events) {
      const text = brief(event.text) + (event.count > 1 ? ` (×${event.count})` : "");
      this.holder.prepend(h("li", {}, h("time", { datetime: new Date(event.at * 1000).toISOString() }, clock(event.at)),
        h("span", { class: event.level, title: event.level }, SIGNS[event.level] ?? "·"), h("span", { class: event.level === "info" ? "" : event.level, title: event.kind }, text)));
      if (event.level !== "info") this.marks.push({ at: event.at, level: event.level, text });
    }
    while (this.holder.children.length > EVENTS_SHOWN) this.holder.lastElementChild.remove();
    this.marks = this.marks.slice(-40);
  }
}
