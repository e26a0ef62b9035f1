// Which adapters are asked: a list to search, with a version of its own for adapters that have several.

import { element, fillSelect, named, whole } from "./elements.js";

const MOST_SHOWN = 200;

export class Picker {
  #entries = [];
  #signature = "";
  #picked = new Set();
  #search = document.getElementById("pick-search");
  #tag = document.getElementById("pick-tag");
  #choices = document.getElementById("choices");
  #left = document.getElementById("choices-left");
  #count = document.getElementById("picked");

  constructor() {
    this.#search.addEventListener("input", () => this.#show());
    this.#tag.addEventListener("change", () => this.#show());
    this.#choices.addEventListener("change", (event) => this.#pick([event.target.value], event.target.checked));
    document.getElementById("pick-shown").addEventListener("click", () => this.#pickAll(true));
    document.getElementById("pick-none").addEventListener("click", () => this.#pickAll(false));
    // Enter in the search would ask
    this.#search.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
  }

  // The references to ask, in the order of the list.
  get references() {
    return this.#entries.map((one) => one.reference).filter((reference) => this.#picked.has(reference));
  }

  focus() {
    this.#search.focus();
  }

  update(adapters) {
    const entries = adapters.flatMap(entriesOf);
    const signature = JSON.stringify(entries);
    if (signature === this.#signature) return; // leave focus and scrolling alone
    [this.#entries, this.#signature] = [entries, signature];
    const known = new Set(entries.map((one) => one.reference));
    this.#picked = new Set([...this.#picked].filter((reference) => known.has(reference)));
    fillSelect(this.#tag, "Any tag", [...new Set(adapters.flatMap((one) => one.tags))].sort());
    this.#show();
  }

  #found() {
    const wanted = this.#search.value.trim().toLowerCase();
    const tag = this.#tag.value;
    return this.#entries.filter((one) => one.reference.toLowerCase().includes(wanted) && (!tag || one.tags.includes(tag)));
  }

  #show() {
    const found = this.#found();
    const shown = found.slice(0, MOST_SHOWN).map((one) => this.#choice(one));
    const none = this.#entries.length ? "No adapter is called so." : "This server has no adapters yet.";
    this.#choices.replaceChildren(...(shown.length ? shown : [element("p", { class: "hint" }, none)]));
    this.#left.textContent = found.length > MOST_SHOWN ? `${MOST_SHOWN} of ${whole(found.length)} shown` : "";
    this.#counted();
  }

  #choice(one) {
    const box = element("input", { type: "checkbox", value: one.reference });
    box.checked = this.#picked.has(one.reference);
    const status = one.status === "failed" ? element("span", { class: "bad" }, "failed") : element("span", { class: "hint" }, one.method);
    return element("label", { class: one.isVersion ? "version" : null }, box, named(one.reference), status);
  }

  #pick(references, isPicked) {
    for (const reference of references) this.#picked[isPicked ? "add" : "delete"](reference);
    this.#counted();
  }

  #pickAll(isPicked) {
    const references = isPicked ? this.#found().slice(0, MOST_SHOWN).filter((one) => !one.isVersion).map((one) => one.reference) : [...this.#picked];
    this.#pick(references, isPicked);
    for (const box of this.#choices.querySelectorAll("input")) box.checked = this.#picked.has(box.value);
  }

  #counted() {
    this.#count.textContent = `${whole(this.#picked.size)} picked of ${whole(this.#entries.filter((one) => !one.isVersion).length)}`;
  }
}

function entriesOf(adapter) {
  const { adapter_id, status, method, tags, versions } = adapter;
  const whole = { reference: adapter_id, status, method: method ?? "", tags, isVersion: false };
  if (versions.length < 2) return [whole];
  return [whole, ...versions.map((one) => ({
    reference: `${adapter_id}@${one.version}`, status: one.refusal ? "failed" : "ready", method: one.method, tags, isVersion: true,
  }))];
}
