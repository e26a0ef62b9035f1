// The answers of the adapters that were asked, side by side, each with its scores or with what went wrong.

import { brief, element, named } from "./elements.js";

// facts: an adapter's entry in the list, by its id; it says what a score means.
export function answerCard(result, facts) {
  return result.code === undefined ? answered(result, facts.get(result.adapter_id)) : failed(result);
}

// For those who do not see the cards.
export function inWords(results) {
  return results.map((one) => {
    if (one.code !== undefined) return `${one.adapter_id}: failed`;
    const { label, score, labels } = one.predictions[0];
    return labels ? `${one.adapter_id}: ${labels.join(", ") || "no label"}` : `${one.adapter_id}: ${label} ${score.toFixed(3)}`;
  }).join("; ");
}

function answered(result, facts) {
  const [prediction] = result.predictions;
  const isNumber = facts?.problem_type === "regression";
  return card(
    "answer", result.adapter_id,
    element("p", { class: "from" }, element("span", { class: "id" }, `@${result.version}`), ` · ${result.method}`),
    verdict(prediction, isNumber, facts),
    isNumber ? null : scores(prediction),
    element("p", { class: "spent" }, ...spent(result)),
  );
}

function failed(result) {
  return card(
    "answer failed", result.adapter_id,
    element("p", { class: "verdict bad" }, result.code.replaceAll("_", " "), element("span", { class: "hint" }, ` ${result.status}`)),
    element("p", { class: "wraps" }, named(result.detail)),
  );
}

function card(kind, adapterId, ...content) {
  return element("article", { class: `panel ${kind}` }, element("h3", {}, named(adapterId)), ...content);
}

function verdict(prediction, isNumber, facts) {
  if (isNumber) {
    return element("p", { class: "verdict" }, brief(prediction.score), " ", named(prediction.label, { class: "hint" }));
  }
  if (!prediction.labels) return element("p", { class: "verdict" }, named(prediction.label));
  const threshold = element("span", { class: "hint" }, ` from ${facts?.threshold ?? "its threshold"} on`);
  if (!prediction.labels.length) return element("p", { class: "verdict" }, "no label", threshold);
  const names = prediction.labels.flatMap((label, index) => [index ? ", " : "", named(label)]);
  return element("p", { class: "verdict" }, ...names, threshold);
}

function scores(prediction) {
  const best = new Set(prediction.labels ?? [prediction.label]);
  return element("ol", { class: "scores" }, ...prediction.scores.map(({ label, score }) => {
    const filled = element("span");
    filled.style.width = `${100 * score}%`;
    return element(
      "li", { class: best.has(label) ? "best" : null }, named(label),
      element("span", { class: "bar-of", "aria-hidden": "true" }, filled),
      element("span", { class: "score" }, score.toFixed(3)),
    );
  }));
}

function spent({ timing_ms: { tokenize, queue, compute }, usage: { tokens } }) {
  const parts = [`tokenise ${tokenize.toFixed(1)} ms`, `queue ${queue.toFixed(1)} ms`, `compute ${compute.toFixed(1)} ms`, `${tokens} tokens`];
  return parts.flatMap((part, index) => [index ? " · " : "", element("span", { class: "whole" }, part)]);
}
