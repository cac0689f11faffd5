// What the planner would do with another cluster: the question's form, and its answer beside what is.
import { duration, find, h, rate, significant } from "./dom.js";

const SPEEDS = [["1", "as it is"], ["0.5", "half"], ["0.25", "a quarter"], ["0.1", "a tenth"], ["2", "twice"], ["10", "ten times"]];

export class WhatIf {
  constructor(ask, onAnswer) {
    this.ask = ask;
    this.onAnswer = onAnswer;
    this.key = "";
    find("question").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    find("forget").addEventListener("click", () => this.forget());
  }

  offer(state) {
    const devices = state.devices.filter((device) => device.agent).map((device) => device.name);
    const pairs = [...new Set(state.links.map((link) => [link.source, link.target].sort().join("\n")))].sort();
    const key = JSON.stringify([devices, pairs]);
    if (key === this.key) return;
    this.key = key;
    find("without").replaceChildren(...devices.map((name) => h("label", {}, h("input", { type: "checkbox", name: "without", value: name }), name)));
    find("links").replaceChildren(...pairs.map((pair) => h("label", {}, pair.replace("\n", " – "),
      h("select", { name: "link", "data-pair": pair, "aria-label": `Speed of ${pair.replace("\n", " to ")}` }, SPEEDS.map(([value, text]) => h("option", { value }, text))))));
  }

  choose(name) {
    const box = [...document.getElementsByName("without")].find((each) => each.value === name);
    if (!box) return;
    box.checked = !box.checked;
    box.focus();
    find("whatif").scrollIntoView({ block: "nearest" });
  }

  async send() {
    const without = [...document.getElementsByName("without")].filter((box) => box.checked).map((box) => box.value);
    const links = [...document.getElementsByName("link")].filter((each) => each.value !== "1").map((each) => [...each.dataset.pair.split("\n"), Number(each.value)]);
    const button = find("predict");
    button.disabled = true;
    find("answer").replaceChildren(h("p", { class: "quiet" }, "The planner is at work …"));
    try {
      const found = await this.ask({ without, links });
      find("answer").replaceChildren(compared(found));
      find("forget").hidden = false;
      this.onAnswer({ ...found.then, without });
    } catch (error) {
      find("answer").replaceChildren(h("p", { class: "worse" }, error.message));
      this.onAnswer(null);
    } finally {
      button.disabled = false;
    }
  }

  forget() {
    find("answer").replaceChildren();
    find("forget").hidden = true;
    for (const box of document.getElementsByName("without")) box.checked = false;
    for (const each of document.getElementsByName("link")) each.value = "1";
    this.onAnswer(null);
  }
}

function compared({ model, now, then }) {
  const change = (before, after, lower) => {
    if (!(before > 0) || Math.abs(after / before - 1) < 0.005) return h("td", { class: "number" }, "same");
    const better = lower ? after < before : after > before;
    const part = Math.round((after / before - 1) * 100);
    return h("td", { class: `number ${better ? "better" : "worse"}` }, `${part > 0 ? "+" : "−"}${Math.abs(part)} %`);
  };
  const line = (name, before, after, cell) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, before), h("td", {}, after), cell);
  const stages = (plan) => plan.stages.map((stage) => `${stage.device} (${stage.stop - stage.start})`).join(" → ");
  return h("div", {}, h("table", {},
    h("thead", {}, h("tr", {}, h("th", {}, model), h("th", {}, "planned now"), h("th", {}, "planned then"), h("th", {}))),
    h("tbody", {},
      line("one request", duration(now.latency_s), duration(then.latency_s), change(now.latency_s, then.latency_s, true)),
      line("at most", rate(1 / now.period_s), rate(1 / then.period_s), change(1 / now.period_s, 1 / then.period_s, false)),
      line("bottleneck", now.bottleneck, then.bottleneck, h("td", {})),
      line("stages (blocks)", stages(now), stages(then), h("td", {})))),
  h("p", { class: "quiet" }, `Planned for ${then.objective}${then.optimal ? ", proven best" : ""}; the drawing shows the plan. ${significant(then.stages.length)} stage${then.stages.length > 1 ? "s" : ""}.`));
}
