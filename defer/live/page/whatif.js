// What the planner would do with another cluster: the question's form, and its answer beside what is.
import { duration, find, h, rate } from "./dom.js";

const SPEEDS = [["1", "as it is"], ["0.5", "half"], ["0.25", "a quarter"], ["0.1", "a tenth"], ["2", "twice"], ["10", "ten times"]];

const HINT = "Take devices away or change links: the dispatcher's own planner says what it would do then, and what that would give. Nothing is changed.";

export class WhatIf {
  constructor(ask, onAnswer) {
    this.ask = ask;
    this.onAnswer = onAnswer;
    this.key = "";
    find("question").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    find("answer").replaceChildren(h("p", { class: "quiet" }, HINT));
    find("forget").addEventListener("click", () => this.forget());
  }

  offer(state) {
    const devices = state.devices.filter((device) => device.agent && device.name !== state.source).map((device) => device.name);
    const pairs = [...new Set(state.links.map((link) => [link.source, link.target].sort().join("\n")))].sort();
    const key = JSON.stringify([devices, pairs]);
    if (key === this.key) return;
    this.key = key;
    const { without, links } = this.chosen(); // what was chosen stays so when the cluster changes
    find("without").replaceChildren(...devices.map((name) => h("label", {}, h("input", { type: "checkbox", name: "without", value: name, checked: without.includes(name) }), name)));
    find("links").replaceChildren(...pairs.map((pair) => h("label", {}, pair.replace("\n", " – "),
      h("select", { name: "link", "data-pair": pair, "aria-label": `Speed of ${pair.replace("\n", " to ")}` }, SPEEDS.map(([value, text]) => h("option", { value, selected: links.some(([a, b, factor]) => `${a}\n${b}` === pair && String(factor) === value) }, text))))));
  }

  chosen() {
    const without = [...document.getElementsByName("without")].filter((box) => box.checked).map((box) => box.value);
    const links = [...document.getElementsByName("link")].filter((each) => each.value !== "1").map((each) => [...each.dataset.pair.split("\n"), Number(each.value)]);
    return { without, links };
  }

  choose(name) {
    const box = [...document.getElementsByName("without")].find((each) => each.value === name);
    if (!box) return;
    box.checked = !box.checked;
    box.focus();
    find("whatif").scrollIntoView({ block: "nearest" });
  }

  async send() {
    const question = this.chosen();
    const button = find("predict");
    button.disabled = true;
    find("answer").replaceChildren(h("p", { class: "quiet" }, "The planner is at work …"));
    try {
      const found = await this.ask(question);
      find("answer").replaceChildren(compared(found));
      find("forget").hidden = false;
      this.onAnswer({ ...found.then, without: question.without });
    } catch (error) {
      find("answer").replaceChildren(h("p", { class: "worse" }, error.message));
      this.onAnswer(null);
    } finally {
      button.disabled = false;
    }
  }

  forget() {
    find("answer").replaceChildren(h("p", { class: "quiet" }, HINT));
    find("forget").hidden = true;
    for (const box of document.getElementsByName("without")) box.checked = false;
    for (const each of document.getElementsByName("link")) each.value = "1";
    this.onAnswer(null);
  }
}

function compared({ model, running, now, then, left_out: leftOut }) {
  const same = JSON.stringify([running.stages, running.latency_s, running.period_s]) === JSON.stringify([now.stages, now.latency_s, now.period_s]);
  // A plan that was given by hand, or made before something changed, is not what the planner would choose now.
  const plans = same ? [["as it is", now], ["then", then]] : [["what runs", running], ["planned anew", now], ["planned then", then]];
  const change = (before, after, lower) => {
    if (!(before > 0) || Math.abs(after / before - 1) < 0.005) return "same";
    const part = Math.round((after / before - 1) * 100);
    return h("span", { class: (lower ? after < before : after > before) ? "better" : "worse" }, `${part > 0 ? "+" : "−"}${Math.abs(part)} %`);
  };
  const line = (name, show, cell) => h("tr", {}, h("th", { scope: "row" }, name), plans.map(([, plan]) => h("td", {}, show(plan))), h("td", {}, cell));
  const stages = (plan) => plan.stages.map((stage) => `${stage.device} ${stage.stop - stage.start}`).join(" → ");
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, h("td", {}), plans.map(([name]) => h("th", { scope: "col" }, name)), h("th", { scope: "col" }, "change"))),
    h("tbody", {},
      line("one request", (plan) => duration(plan.latency_s), change(now.latency_s, then.latency_s, true)),
      line("at most", (plan) => rate(1 / plan.period_s), change(1 / now.period_s, 1 / then.period_s, false)),
      line("bottleneck", (plan) => plan.bottleneck.replace(/^device /, "").replace("->", "→"), ""),
      line("blocks", stages, ""))),
  h("p", { class: "quiet" }, `${model}, planned for ${then.objective}${then.optimal ? ", proven best" : ""}${leftOut ? `, without ${leftOut}` : ""}. The drawing shows the plan.`));
}
