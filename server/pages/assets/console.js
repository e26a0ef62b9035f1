// The console: asks adapters, lists them, and shows what the server does.

import { answerCard, inWords } from "./answers.js";
import { element, named, problemNotice, whole } from "./elements.js";
import { Live } from "./live.js";
import { Picker } from "./picker.js";
import { Problem, getJson, getText, hasKey, isKey, postJson, useKey } from "./server.js";
import { Table } from "./table.js";

const METRICS_MS = 5_000;
const LIST_MS = 30_000;
const UNMEASURED = new Map([
  [403, "to keys with the scope metrics, which this one has not"],
  [404, "by each replica for itself, not through the router in front"],
]);

const at = (id) => document.getElementById(id);
const [picker, table, live] = [new Picker(), new Table(), new Live()];
let adapters = new Map();
let listed = "";
let mayMeasure = true;
let asking = null;

// Work that is done again and again while the page is seen. It is never done twice at a time.
class Beat {
  #timer = 0;
  #isRunning = false;

  constructor(everyMs, work) {
    Object.assign(this, { everyMs, work, isOn: false });
    document.addEventListener("visibilitychange", () => this.now());
  }

  start() {
    this.isOn = true;
    return this.now();
  }

  stop() {
    this.isOn = false;
    clearTimeout(this.#timer);
  }

  async now() {
    clearTimeout(this.#timer);
    if (!this.isOn || document.hidden || this.#isRunning) return;
    this.#isRunning = true;
    try {
      await this.work();
    } finally {
      this.#isRunning = false;
    }
    if (this.isOn && !document.hidden) this.#timer = setTimeout(() => this.now(), this.everyMs);
  }
}

const metricsBeat = new Beat(METRICS_MS, () => heard(measure));
const listBeat = new Beat(LIST_MS, () => heard(list));

async function begin() {
  try {
    const base = await getJson("v1/base");
    const facts = [base.name, base.family, base.dtype, base.device].flatMap((fact, index) => [index ? " · " : "", named(fact)]);
    at("server").replaceChildren(...facts);
  } catch (problem) {
    at("forget").hidden = !hasKey();
    if (meetsKey(problem)) return;
    tell(problem);
    if (problem.status !== 403) setTimeout(begin, METRICS_MS); // a key that may not ask will not do so later
    return;
  }
  tell(null);
  at("key-part").hidden = true;
  at("parts").hidden = false;
  at("forget").hidden = !hasKey();
  at("documents").hidden = hasKey();
  mayMeasure = true;
  await listBeat.start();
  await metricsBeat.start();
}

async function list() {
  const found = await getJson("v1/adapters");
  const text = JSON.stringify(found);
  if (text === listed) return;
  listed = text;
  adapters = new Map(found.adapters.map((one) => [one.adapter_id, one]));
  picker.update(found.adapters);
  table.update(found.adapters);
  if (found.trouble) throw new Problem(0, "the adapters cannot be looked at", found.trouble.reason);
}

async function measure() {
  if (!mayMeasure) return;
  let text;
  try {
    text = await getText("metrics");
  } catch (problem) {
    const why = UNMEASURED.get(problem.status);
    if (!why) throw problem;
    mayMeasure = false;
    table.updateTraffic(null, why);
    live.refuse(`Throughput and latency are shown ${why}.`);
    return;
  }
  const { traffic, isAlive, isStalled } = live.update(text);
  table.updateTraffic(traffic);
  if (!isAlive) throw new Problem(0, "the engine does not work", "it must be restarted; the server's log says why");
  if (isStalled) throw new Problem(0, "the engine stalls", "a forward pass takes longer than --stall-s allows");
}

// Does one beat's work, and says when it fails, and when it is fine again.
async function heard(work) {
  try {
    await work();
    tell(null, work.name);
  } catch (problem) {
    if (!meetsKey(problem)) tell(problem, work.name);
  }
}

const troubles = new Map();

function tell(problem, from = "begin") {
  if ((troubles.get(from)?.message ?? null) === (problem?.message ?? null)) return;
  if (problem) troubles.set(from, problem);
  else troubles.delete(from);
  const messages = new Map([...troubles.values()].map((one) => [one.message, one]));
  at("trouble").replaceChildren(...[...messages.values()].map(problemNotice));
}

// Without a key that the server knows, nothing is shown but the place to put one.
function meetsKey(problem) {
  if (problem.status !== 401) return false;
  const wasRefused = hasKey();
  forget();
  tell(wasRefused ? new Problem(401, "the key was refused", "the server does not know this key, or it has expired") : null);
  return true;
}

function forget() {
  useKey(null);
  listBeat.stop();
  metricsBeat.stop();
  asking?.abort();
  listed = "";
  troubles.clear();
  at("trouble").replaceChildren();
  at("server").replaceChildren();
  at("answers").replaceChildren();
  at("answers").removeAttribute("aria-busy");
  at("summary").textContent = "";
  picker.update([]);
  table.update([]);
  at("forget").hidden = at("parts").hidden = at("documents").hidden = true;
  at("key-part").hidden = false;
  at("key").focus();
}

async function ask() {
  const references = picker.references;
  if (!references.length) {
    at("answers").replaceChildren();
    at("summary").textContent = "Pick at least one adapter.";
    picker.focus();
    return;
  }
  asking?.abort();
  const mine = (asking = new AbortController());
  at("answers").setAttribute("aria-busy", "true");
  at("summary").textContent = `Asking ${count(references.length, "adapter")} …`;
  const began = performance.now();
  try {
    const { results } = await postJson("v1/classify/fanout", question(references), mine.signal);
    const ms = performance.now() - began;
    const answered = results.filter((one) => one.code === undefined).length;
    at("summary").replaceChildren(
      `${answered} of ${count(results.length, "adapter")} answered in ${ms.toFixed(1)} ms, the way there and back included.`,
      element("span", { class: "unseen" }, named(inWords(results))),
    );
    at("answers").replaceChildren(...results.map((one) => answerCard(one, adapters)));
  } catch (problem) {
    if (mine.signal.aborted || meetsKey(problem)) return;
    at("summary").textContent = "Not answered.";
    at("answers").replaceChildren(problemNotice(problem));
  }
  at("answers").removeAttribute("aria-busy");
  listBeat.now(); // what was asked may have come into memory
}

function question(references) {
  const pair = at("has-pair").checked ? at("text-pair").value : null;
  const body = { adapters: references, inputs: { text: at("text").value, text_pair: pair }, truncate: at("truncate").checked };
  return at("top-k").value ? { ...body, top_k: Number(at("top-k").value) } : body;
}

function count(number, noun) {
  return `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
at("has-pair").addEventListener("change", () => {
  at("pair-part").hidden = !at("has-pair").checked;
  at("text-pair").required = at("has-pair").checked;
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("key").value.trim();
  at("key").value = "";
  if (!isKey(given)) {
    tell(new Problem(0, "that is no key", "a key is one line of ASCII letters, digits and signs, without blanks"));
    return;
  }
  useKey(given);
  begin();
});
at("forget").addEventListener("click", forget);
begin();
