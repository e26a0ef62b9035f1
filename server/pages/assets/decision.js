// The decision: sliders beside its boxes, and each answer of the server in the place of the one before.

import { element, problemNotice } from "./elements.js";
import { Problem, getDocument, hasKey } from "./server.js";

const STEPS = 300;
const FIRST_MOVE = "train_rows";
const ORDERED = [["hot", "adapters"], ["mean_tokens", "max_tokens"]]; // the first is never above the second

const at = (id) => document.getElementById(id);
let wanted = null;
let isAsking = false;
let isChanging = false;

function begin() {
  at("documents").hidden = hasKey();
  addEventListener("popstate", () => ask(location.search, true));
  if (at("key-part")) {
    if (hasKey()) ask(location.search, true);
    return;
  }
  equip();
}

// One question at a time; of those that come meanwhile only the last is asked.
async function ask(search, hasNewForm) {
  wanted = { search, hasNewForm: hasNewForm || wanted?.hasNewForm };
  if (isAsking) return;
  isAsking = true;
  while (wanted) {
    const next = wanted;
    wanted = null;
    at("result")?.setAttribute("aria-busy", "true");
    try {
      place(await getDocument(`decision${next.search}`), next.hasNewForm);
      at("trouble").replaceChildren();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      at("trouble").replaceChildren(problemNotice(problem));
    }
    at("result")?.removeAttribute("aria-busy");
  }
  isAsking = false;
}

// Put what was found where the same stands now. The form stays as it is while somebody moves in it.
function place(found, hasNewForm) {
  const [now, fresh] = [at("result"), found.getElementById("result")];
  if (!now || !fresh) {
    const parts = [...found.querySelectorAll("main > :not(h1, #trouble)")];
    at("main").replaceChildren(...at("main").querySelectorAll(":scope > h1, :scope > #trouble"), ...parts.map(taken));
    if (fresh) equip();
    return;
  }
  const focused = now.contains(document.activeElement) ? document.activeElement.id : null;
  const opened = [...now.querySelectorAll("details[open][id]")].map((one) => one.id);
  now.replaceChildren(...[...fresh.childNodes].map(taken));
  for (const id of opened) at(id)?.setAttribute("open", "");
  if (focused !== null) focus(at(focused) ?? now);
  if (hasNewForm) {
    at("question").replaceWith(taken(found.getElementById("question")));
    equip();
  } else {
    showWrong(found);
  }
  at("summary").textContent = found.getElementById("summary").textContent;
}

// From the document that was sent: the server has escaped every name in it, and no script of it runs.
function taken(node) {
  return document.importNode(node, true);
}

function focus(one) {
  if (one.tabIndex < 0) one.tabIndex = -1;
  one.focus({ preventScroll: true });
}

function showWrong(found) {
  for (const one of at("question").querySelectorAll(".wrong")) one.remove();
  for (const one of at("question").querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
  for (const one of found.querySelectorAll(".wrong")) {
    const box = at(one.id.replace("wrong-", "in-"));
    box.setAttribute("aria-invalid", "true");
    box.setAttribute("aria-describedby", one.id);
    box.closest(".input, label").append(taken(one));
  }
}

// What the form needs where scripts run: sliders, and answers without a button.
function equip() {
  const form = at("question");
  if (!form) return; // there is none without evidence
  for (const box of form.querySelectorAll("input[data-low]")) addSlider(form, box);
  form.querySelector(".send").hidden = true;
  form.addEventListener("input", (event) => changed(form, event.target));
  form.addEventListener("change", () => (isChanging = false));
  form.addEventListener("submit", (event) => event.preventDefault());
}

function addSlider(form, box) {
  const scale = new Scale(box);
  const slider = element("input", { type: "range", min: 0, max: STEPS, "aria-label": `${box.labels[0].textContent}, slider` });
  const follow = () => {
    slider.value = box.value.trim() ? scale.step(Number(box.value)) : "most" in box.dataset ? STEPS : 0;
    slider.setAttribute("aria-valuetext", box.value || box.placeholder);
  };
  slider.addEventListener("input", () => {
    box.value = scale.value(Number(slider.value));
    keepOrder(form, box);
    slider.setAttribute("aria-valuetext", box.value);
  });
  box.addEventListener("input", follow);
  box.closest(".input").append(slider);
  follow();
}

// Equal steps of a slider are equal factors of its value.
class Scale {
  constructor(box) {
    this.low = Number(box.dataset.low);
    this.high = Number(box.dataset.high);
    this.isWhole = "whole" in box.dataset;
  }

  value(step) {
    const exact = this.low * (this.high / this.low) ** (step / STEPS);
    const round = Number(exact.toPrecision(2));
    return this.isWhole ? Math.round(round) : round;
  }

  step(value) {
    return value > 0 ? (STEPS * Math.log(value / this.low)) / Math.log(this.high / this.low) : 0;
  }
}

function keepOrder(form, box) {
  for (const [small, large] of ORDERED.map((names) => names.map((name) => form.elements[name]))) {
    if (![small, large].includes(box) || !small.value.trim() || !large.value.trim()) continue;
    if (Number(small.value) <= Number(large.value)) continue;
    const other = box === small ? large : small;
    other.value = box.value;
    other.dispatchEvent(new Event("input"));
  }
}

function changed(form, control) {
  const box = control.type === "range" ? control.closest(".input").querySelector("[name]") : control;
  if ("moves" in box.dataset && box.value.trim()) form.elements.move.value = box.name;
  const search = searchOf(form);
  history[isChanging ? "replaceState" : "pushState"](null, "", search);
  isChanging = true;
  ask(search, false);
}

function searchOf(form) {
  const given = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    const isUsual = name === "move" ? value === FIRST_MOVE : value === form.elements[name].dataset.default;
    if (value.trim() && !isUsual) given.append(name, value.trim());
  }
  return `?${given}`;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='?']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const search = link.getAttribute("href");
  history.pushState(null, "", search);
  ask(search, true);
});

begin();
