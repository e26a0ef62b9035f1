// All adapters: what each is, where it is, and how much it was asked.

import { element, fillSelect, named, size, whole } from "./elements.js";

const MOST_SHOWN = 200;
const FEW_LABELS = 4;
const TIERS = { device: "device", host: "host", disk: "disk" };
const STATUSES = { ready: "ready", failed: "failed", update_failed: "update failed" };
const COLUMNS = [
  { name: "Adapter", by: (one) => one.adapter_id },
  { name: "Status", by: (one) => one.status },
  { name: "Method", by: (one) => one.method ?? "" },
  { name: "Memory", by: (one) => Object.keys(TIERS).indexOf(one.tier) },
  { name: "Version", by: (one) => one.version ?? "" },
  { name: "Labels", by: (one) => one.labels?.length ?? 0 },
  { name: "Size", by: (one) => one.num_bytes ?? 0, isNumber: true },
  { name: "Requests", by: (one, traffic) => traffic?.get(one.adapter_id)?.asked ?? 0, isNumber: true },
];

export class Table {
  #adapters = [];
  #traffic = null;
  #why = "to keys with the scope metrics";
  #cells = new Map();
  #sort = { column: 0, isDescending: false };
  #search = document.getElementById("table-search");
  #filters = { method: select("table-method"), tier: select("table-tier"), status: select("table-status") };
  #body = element("tbody");
  #heads = COLUMNS.map((column, index) => this.#head(column, index));
  #count = document.getElementById("table-count");
  #note = document.getElementById("table-note");

  constructor() {
    const head = element("thead", {}, element("tr", {}, ...this.#heads));
    document.getElementById("table").append(element("table", {}, head, this.#body));
    this.#search.addEventListener("input", () => this.#show());
    for (const filter of Object.values(this.#filters)) filter.addEventListener("change", () => this.#show());
    fill(this.#filters.tier, "Any memory", TIERS);
    fill(this.#filters.status, "Any status", STATUSES);
  }

  update(adapters) {
    this.#adapters = adapters.map((one) => ({ ...one, tier: one.versions.find(({ version }) => version === one.version)?.tier }));
    fillSelect(this.#filters.method, "Any method", [...new Set(adapters.map((one) => one.method).filter(Boolean))].sort());
    this.#show();
  }

  // traffic: id -> {asked, failed}; null: not known here, why says to whom it is. Only numbers change: nobody loses their place.
  updateTraffic(traffic, why = this.#why) {
    this.#traffic = traffic;
    this.#why = why;
    for (const [adapterId, cell] of this.#cells) cell.replaceChildren(...this.#requests(adapterId));
    this.#tell();
  }

  #head(column, index) {
    const button = element("button", { type: "button" }, column.name);
    button.addEventListener("click", () => {
      const { column: before, isDescending } = this.#sort;
      // of numbers, the largest are looked for
      this.#sort = { column: index, isDescending: before === index ? !isDescending : Boolean(column.isNumber) };
      this.#show();
    });
    return element("th", { scope: "col", class: column.isNumber ? "number" : null }, button);
  }

  #found() {
    const wanted = this.#search.value.trim().toLowerCase();
    const { column, isDescending } = this.#sort;
    const sign = isDescending ? -1 : 1;
    const value = (one) => COLUMNS[column].by(one, this.#traffic);
    return this.#adapters
      .filter((one) => Object.entries(this.#filters).every(([field, filter]) => !filter.value || one[field] === filter.value))
      .filter((one) => [one.adapter_id, ...one.tags, ...(one.labels ?? [])].some((name) => name.toLowerCase().includes(wanted)))
      .sort((one, other) => sign * compare(value(one), value(other)) || compare(one.adapter_id, other.adapter_id));
  }

  #show() {
    const found = this.#found();
    const open = new Set([...this.#body.querySelectorAll("details[open]")].map((one) => one.dataset.of));
    this.#cells.clear();
    this.#body.replaceChildren(...found.slice(0, MOST_SHOWN).map((one) => this.#row(one)));
    for (const one of this.#body.querySelectorAll("details")) one.open = open.has(one.dataset.of);
    this.#heads.forEach((head, index) => {
      if (index === this.#sort.column) head.setAttribute("aria-sort", this.#sort.isDescending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const all = this.#adapters.length;
    this.#count.textContent = found.length === all ? whole(all) : `${whole(found.length)} of ${whole(all)}`;
    this.#tell(found.length);
  }

  #row(one) {
    const requests = element("td", { class: "number" }, ...this.#requests(one.adapter_id));
    this.#cells.set(one.adapter_id, requests);
    const tags = one.tags.map((tag) => named(tag, { class: "tag" }));
    const pinned = one.pinned ? element("span", { class: "tag" }, "pinned") : null;
    const reason = one.refusal ? element("div", { class: "reason wraps bad" }, named(one.refusal.reason)) : null;
    return element(
      "tr", {},
      element("th", { scope: "row" }, named(one.adapter_id), ...tags, pinned, reason, warnings(one)),
      element("td", { class: one.status === "ready" ? "good whole" : "bad whole" }, STATUSES[one.status]),
      element("td", {}, one.method ?? "–"),
      element("td", {}, TIERS[one.tier] ?? "–"),
      element("td", { class: "id" }, ...shares(one)),
      element("td", {}, labels(one)),
      element("td", { class: "number" }, one.num_bytes === null ? "–" : size(one.num_bytes)),
      requests,
    );
  }

  #requests(adapterId) {
    const { asked, failed } = this.#traffic?.get(adapterId) ?? { asked: 0, failed: 0 };
    if (!this.#traffic || !asked) return ["–"];
    return failed ? [whole(asked), element("div", { class: "bad" }, `${whole(failed)} failed`)] : [whole(asked)];
  }

  #tell(numFound = this.#cells.size) {
    const notes = [];
    if (numFound > MOST_SHOWN) notes.push(`The first ${MOST_SHOWN} are shown; search or filter to see others.`);
    if (!this.#traffic) notes.push(`Requests are shown ${this.#why}.`);
    else notes.push("Requests: since the server's start.");
    const others = this.#traffic?.get("other")?.asked;
    if (others && !this.#cells.has("other")) {
      notes.push(`${whole(others)} more: for adapters without a count of their own, or for none that exists.`);
    }
    this.#note.textContent = notes.join(" ");
  }
}

function select(id) {
  return document.getElementById(id);
}

function fill(filter, first, names) {
  const options = Object.entries(names).map(([value, name]) => element("option", { value }, name));
  filter.replaceChildren(element("option", { value: "" }, first), ...options);
}

function compare(one, other) {
  return one < other ? -1 : one > other ? 1 : 0;
}

// What the id stands for: one version, or several with their shares.
function shares({ alias, versions }) {
  const sum = alias.reduce((weight, one) => weight + one.weight, 0);
  const lines = alias.map(({ version, weight }) => {
    const share = alias.length > 1 ? ` ${((100 * weight) / sum).toLocaleString("en-US", { maximumSignificantDigits: 3 })} %` : "";
    return element("div", { class: "whole" }, `${version}${share}`);
  });
  const others = versions.length - alias.length;
  return [...(lines.length ? lines : ["–"]), others > 0 ? element("div", { class: "hint" }, `${others} kept`) : null];
}

function labels({ adapter_id, labels: all }) {
  if (!all) return "–";
  const listed = (some) => some.flatMap((label, index) => [index ? ", " : "", named(label)]);
  if (all.length <= FEW_LABELS) return element("span", {}, ...listed(all));
  const summary = element("summary", {}, ...listed(all.slice(0, FEW_LABELS - 1)), ` and ${whole(all.length - FEW_LABELS + 1)} more`);
  return element("details", { "data-of": `labels ${adapter_id}` }, summary, ...listed(all.slice(FEW_LABELS - 1)));
}

function warnings({ adapter_id, warnings: all }) {
  if (!all.length) return null;
  const summary = element("summary", { class: "warn" }, all.length === 1 ? "1 warning" : `${all.length} warnings`);
  const items = all.map((one) => element("li", { class: "wraps" }, named(one)));
  return element("details", { class: "reason", "data-of": `warnings ${adapter_id}` }, summary, element("ul", {}, ...items));
}
