// What the server does now: readings of its metrics, and charts of the last five minutes.

import { figure } from "./chart.js";
import { brief, element, size, whole } from "./elements.js";
import { buckets, parse, quantile, total } from "./prometheus.js";

const SHOWN_MS = 300_000;
const MOST_APART_MS = 20_000; // between readings further apart nothing is known: the page was hidden, or the server away
const TIMES = "adaptermux_request_seconds";

export class Live {
  #readings = [];
  #place = document.getElementById("live");
  #note = document.getElementById("live-note");

  // text: as `/metrics` gives it. traffic: id -> {asked, failed}, of the requests since the start.
  update(text) {
    const metrics = parse(text);
    const reading = {
      at: Date.now(),
      texts: total(metrics, "adaptermux_texts_total"),
      errors: total(metrics, "adaptermux_requests_total", ({ code }) => code !== "ok") + total(metrics, "adaptermux_refused_total"),
      waiting: total(metrics, "adaptermux_waiting_texts"),
      buckets: buckets(metrics, TIMES),
    };
    if (this.#readings.at(-1)?.texts > reading.texts) this.#readings = []; // the server has started anew
    this.#readings.push(reading);
    this.#readings = this.#readings.filter((one) => reading.at - one.at <= SHOWN_MS);
    this.#note.hidden = true;
    this.#place.hidden = false;
    this.#place.replaceChildren(...this.#figures(), facts(metrics));
    return {
      traffic: traffic(metrics),
      isAlive: total(metrics, "adaptermux_engine_alive") > 0,
      isStalled: total(metrics, "adaptermux_engine_stalled") > 0,
    };
  }

  refuse(why) {
    this.#note.textContent = why;
    this.#note.hidden = false;
    this.#place.hidden = true;
  }

  #figures() {
    const to = this.#readings.at(-1).at;
    const ends = ["5 min ago", "now"];
    const rate = (field) => this.#between((before, now) => (1000 * Math.max(0, now[field] - before[field])) / (now.at - before.at));
    const within = (share) => this.#between((before, now) => {
      const seconds = quantile(share, before.buckets, now.buckets);
      return seconds === null ? null : 1000 * seconds;
    });
    const waiting = this.#readings.map((one) => [one.at, one.waiting]);
    return [
      { title: "Throughput", unit: "/s", lines: [{ name: "texts", points: rate("texts") }, { name: "errors", points: rate("errors") }] },
      { title: "Latency", unit: "ms", lines: [{ name: "p50", points: within(0.5) }, { name: "p95", points: within(0.95) }] },
      { title: "Waiting", unit: "", lines: [{ name: "texts", points: waiting }] },
    ].map((one) => element("div", { class: "panel" }, figure({ ...one, from: to - SHOWN_MS, to, ends })));
  }

  #between(value) {
    return this.#readings.slice(1).map((now, index) => {
      const before = this.#readings[index];
      return [now.at, now.at - before.at > MOST_APART_MS ? null : value(before, now)];
    });
  }
}

function facts(metrics) {
  const hits = total(metrics, "adaptermux_adapter_hits_total");
  const misses = total(metrics, "adaptermux_adapter_misses_total");
  const state = (status) => total(metrics, "adaptermux_adapters", (labels) => labels.status === status);
  const troubled = state("failed") + state("update_failed");
  const rows = [
    ["Adapters ready", `${whole(state("ready"))}${troubled ? `, ${whole(troubled)} with trouble` : ""}`],
    ["In memory", `${whole(total(metrics, "adaptermux_resident_adapters"))}, ${size(total(metrics, "adaptermux_adapter_resident_bytes"))}`],
    ["Texts", whole(total(metrics, "adaptermux_texts_total"))],
    ["Found in memory", hits + misses ? `${brief((100 * hits) / (hits + misses))} %` : "–"],
    ["Texts a batch", mean(metrics, "adaptermux_batch_texts")],
    ["Adapters a batch", mean(metrics, "adaptermux_batch_adapters")],
  ];
  const list = element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  return element("div", { class: "panel" }, element("strong", {}, "Since the start"), list);
}

function mean(metrics, name) {
  const count = total(metrics, `${name}_count`);
  return count ? brief(total(metrics, `${name}_sum`) / count) : "–";
}

function traffic(metrics) {
  const found = new Map();
  for (const { labels, value } of metrics.get("adaptermux_requests_total") ?? []) {
    const one = found.get(labels.adapter) ?? { asked: 0, failed: 0 };
    found.set(labels.adapter, { asked: one.asked + value, failed: one.failed + (labels.code === "ok" ? 0 : value) });
  }
  return found;
}
