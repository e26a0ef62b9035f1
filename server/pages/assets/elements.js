// Parts of a page. What strangers have named goes in as text, never as markup.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// A name that may be written from right to left, or in any length, and must not move what stands around it.
export function named(text, attributes = {}) {
  return element("bdi", attributes, text);
}

export function fillSelect(select, first, values) {
  const before = select.value;
  select.replaceChildren(element("option", { value: "" }, first), ...values.map((value) => element("option", { value }, value)));
  select.value = values.includes(before) ? before : "";
}

export function whole(number) {
  return number.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

// Three digits, whatever the size: 0.123, 12.3, 1,230.
export function brief(number) {
  return Math.abs(number) < 1000 ? number.toLocaleString("en-US", { maximumSignificantDigits: 3 }) : whole(number);
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${brief(bytes / 1024 ** power)} ${units[power]}`;
}

// What an error says, for a person: its title, its reason, and the fields that are wrong.
export function problemNotice(problem) {
  const heading = element("p", {}, element("strong", {}, problem.title), problem.status ? ` (${problem.status})` : "");
  const others = problem.fields.filter((one) => one.message !== problem.message);
  return element(
    "div", { class: "notice bad" }, heading, element("p", { class: "wraps" }, named(problem.message)),
    others.length ? element("ul", {}, ...others.map((one) => element("li", { class: "wraps" }, named(one.message)))) : null,
  );
}
