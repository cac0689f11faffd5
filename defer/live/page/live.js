// Asks the dispatcher every second how it is, and draws that. Nothing is loaded from elsewhere.
import { chart } from "./charts.js";
import { ClusterView } from "./cluster.js";
import { clock, duration, find, h, rate, say, size } from "./dom.js";
import { EventList, StageBars } from "./panels.js";
import { WhatIf } from "./whatif.js";

const EVERY_MS = 1000;
const HIDDEN_MS = 10000;
const POINTS_KEPT = 700;
const ACTS = {
  replan: ["Re-plan", "Measures and plans again with the devices that answer, loads the new plan beside the old one, and switches."],
  rollback: ["Roll back", "Serves by the plan before this one again."],
  drain: ["Drain", "Takes no more requests for this model, lets those under way end, and frees its devices."],
};

const seen = { boot: "", event: 0, point: 0, points: new Map(), state: null, answered: 0, planned: null, stopped: false };
const bars = new StageBars(find("bars"));
const events = new EventList(find("happened"));
const whatIf = new WhatIf((question) => post("what-if", { model: chosen(), ...question }), (planned) => {
  seen.planned = planned;
  if (seen.state) draw();
});
const cluster = new ClusterView(find("drawing"), (name) => whatIf.choose(name));

function chosen() {
  const names = served(seen.state);
  const wanted = find("model").value;
  return names.includes(wanted) ? wanted : names[0] ?? "";
}

// A name that stands for the versions of a model has no stages of its own: those are its versions'.
function served(state) {
  const busy = new Set(state?.deployments.map((each) => each.model));
  return (state?.models ?? []).filter((model) => busy.has(model.name) || model.state === "announced").map((model) => model.name);
}

// ------------------------------------------------------------------------------------------------ conversation

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

const wantsToken = "token" in document.documentElement.dataset;
const locked = () => wantsToken && !sessionStorage.getItem("token");

async function answered(response) {
  if (response.status === 401) {
    sessionStorage.removeItem("token");
    say(find("ask-token-note"), "That was not the token that the dispatcher was started with.");
  }
  const told = await response.json();
  if (!response.ok) throw new Error([told.error, told.hint].filter(Boolean).join("; "));
  return told;
}

async function post(what, body) {
  return answered(await fetch(what, { method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}

async function look() {
  const response = await fetch(`state?event=${seen.event}&point=${seen.point}`, { headers: headers(), signal: AbortSignal.timeout(8000) });
  const state = await answered(response);
  if (seen.boot && state.boot !== seen.boot) { // another process: numbers begin anew
    Object.assign(seen, { boot: state.boot, event: 0, point: 0, points: new Map() });
    events.clear();
    return look();
  }
  seen.boot = state.boot;
  seen.event = Math.max(seen.event, ...state.events.map((event) => event.seq));
  for (const [model, points] of Object.entries(state.points)) {
    const kept = [...(seen.points.get(model) ?? []), ...points].slice(-POINTS_KEPT);
    seen.points.set(model, kept);
    if (points.length) seen.point = Math.max(seen.point, points[points.length - 1][0]);
  }
  events.add(state.events);
  seen.state = state;
  seen.answered = Date.now();
  return undefined;
}

async function turn() {
  if (locked()) {
    trouble(seen.stopped ? "The dispatcher shows nothing without its token." : "");
    askToken();
    setTimeout(turn, 200);
    return;
  }
  try {
    await look();
    trouble("");
    draw();
    delete document.documentElement.dataset.stale;
  } catch (error) {
    document.documentElement.dataset.stale = "";
    const since = seen.answered ? ` since ${clock(seen.answered / 1000)}` : "";
    trouble(error instanceof TypeError || error.name === "TimeoutError" ? `No answer from the dispatcher${since}.` : error.message);
  }
  setTimeout(turn, document.hidden ? HIDDEN_MS : EVERY_MS);
}

function trouble(text) {
  find("trouble").hidden = !text;
  say(find("trouble"), text);
}

// ----------------------------------------------------------------------------------------------------- drawing

function draw() {
  const state = seen.state;
  const models = served(state);
  offerModels(models);
  const colours = new Map(models.map((name, at) => [name, at % 6]));
  document.title = `${state.models.some((model) => model.state !== "ready") ? "! " : ""}defer: ${models.join(", ") || "no model"}`;
  const phase = state.phase === "serving" ? "" : `${state.phase}; `;
  say(find("about"), `${phase}version ${state.version}, up ${duration(Math.round(state.uptime_s))}; ${state.held_requests} ${state.held_requests === 1 ? "request" : "requests"} held, ${size(state.held_bytes)}`);
  const lost = state.devices.filter((device) => device.agent && device.state === "lost").map((device) => device.name);
  say(find("cluster-note"), seen.planned ? "What the planner would do: dashed lines. Figures of stages are left out."
    : lost.length ? `Lost: ${lost.join(", ")}` : "Dots are traffic, squares are requests that wait. Choose a device to ask what would be without it.");
  cluster.draw(state, colours, seen.planned, chosen());
  bars.draw(state, models.length > 1 ? colours : new Map());
  drawCharts(state);
  whatIf.offer(state);
  drawActs(state);
  document.documentElement.dataset.looks = String(Number(document.documentElement.dataset.looks ?? 0) + 1);
}

function offerModels(models) {
  const select = find("model");
  find("choose").hidden = models.length < 2;
  if ([...select.options].map((option) => option.value).join("\n") === models.join("\n")) return;
  const before = select.value;
  select.replaceChildren(...models.map((name) => h("option", { value: name }, name)));
  if (models.includes(before)) select.value = before;
}

function drawCharts(state) {
  const model = chosen();
  const points = seen.points.get(model) ?? [];
  const mine = state.deployments.filter((each) => each.model === model && each.predicted_period_s > 0);
  const most = mine.reduce((sum, each) => Math.max(sum, 1 / each.predicted_period_s), 0);
  const latency = mine.reduce((sum, each) => Math.max(sum, each.predicted_latency_s), 0);
  const common = { now: state.now, marks: events.marks, empty: "nothing yet" };
  chart(find("rate"), {
    ...common, show: (value) => rate(value),
    series: [{ name: "results", kind: "first", values: points.map((point) => [point[0], point[1]]) },
      ...(points.some((point) => point[2] > 0) ? [{ name: "failures", kind: "second", values: points.map((point) => [point[0], point[2]]) }] : [])],
    planned: most ? { value: most, text: `planned: at most ${rate(most)}` } : null,
  });
  chart(find("latency"), {
    ...common, show: (value) => duration(value),
    series: [{ name: "p50", kind: "first", values: points.map((point) => [point[0], point[3]]) },
      { name: "p99", kind: "second", values: points.map((point) => [point[0], point[4]]) }],
    planned: latency ? { value: latency, text: `planned: ${duration(latency)} when idle` } : null,
  });
}

// ----------------------------------------------------------------------------------------------------- actions

function drawActs(state) {
  const possible = state.actions[chosen()] ?? [];
  // A refusal stays to be read until the next press.
  const note = state.doing ? `Under way: ${state.doing}.` : Object.keys(state.actions).length ? ""
    : "Start the dispatcher with --token-file to act from here; defer deploy and defer undeploy do the same from a terminal.";
  say(find("acts-note"), note);
  const key = JSON.stringify([chosen(), possible]);
  const holder = find("buttons");
  if (holder.dataset.key !== key) {
    holder.dataset.key = key;
    holder.replaceChildren(...possible.map((name) => h("button", { type: "button", onclick: () => act(name) }, ACTS[name][0])));
  }
  // Not `disabled`: that would throw the keyboard's focus away from who has just pressed it.
  for (const button of holder.children) button.setAttribute("aria-disabled", String(Boolean(state.doing)));
}

async function act(name) {
  if (seen.state.doing) return;
  const model = chosen();
  const dialog = find("confirm");
  say(find("confirm-title"), `${ACTS[name][0]} ${model}?`);
  say(find("confirm-note"), ACTS[name][1]);
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => { dialog.addEventListener("close", resolve, { once: true }); });
  if (dialog.returnValue !== "ok") return;
  try {
    await post("act", { action: name, model });
    say(find("acts-note"), `Begun: ${ACTS[name][0].toLowerCase()} of ${model}.`);
  } catch (error) {
    say(find("acts-note"), error.message);
  }
}

function askToken() {
  const dialog = find("ask-token");
  if (dialog.open || seen.stopped) return;
  dialog.returnValue = "no";
  dialog.showModal();
}

find("ask-token").addEventListener("close", () => {
  seen.stopped = find("ask-token").returnValue !== "ok"; // who says no is asked again by the button only
  const given = find("token-value").value.trim();
  if (!seen.stopped && given) sessionStorage.setItem("token", given);
  find("token-value").value = "";
});
find("token").addEventListener("click", () => {
  seen.stopped = false;
  askToken();
});
find("model").addEventListener("change", () => seen.state && draw());
find("token").hidden = !wantsToken;
addEventListener("resize", () => seen.state && draw());
turn();
