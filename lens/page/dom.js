// Elements made of plain values. Text is always a text node: nothing that a model or a prompt says becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** Returns an HTML element: h("p", {class: "note", onclick: f, style: {color: "red"}}, "text", child, …). */
export function h(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** Returns an SVG element, in the same way. */
export function s(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, each] of Object.entries(value)) element.style.setProperty(name, each);
    else if (key === "value" || key === "checked") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

/** Returns the children in nested lists that are there. */
function present(children) {
  return children.flat(9).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Puts children in place of what is inside an element. */
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
  return element;
}

/** Returns a number as people read it: 1,234 · 12.3 · −0.012 · 4.5e-7. */
export function number(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return "–";
  if (value < 0) return `−${number(size)}`;
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.1 || size === 0) return value.toFixed(2);
  return size >= 0.001 ? value.toFixed(4) : value.toExponential(1);
}

/** Returns a probability as a percentage. */
export function percent(p) {
  return p >= 0.1 ? `${(100 * p).toFixed(0)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : p > 0 ? "<0.1%" : "0%";
}

/** Returns a labelled control: a <label> around its name and the element. */
export function labelled(text, element, note = null) {
  return h("label", { class: "control" }, h("span", {}, text), element, note);
}

/** Returns a row of buttons of which one is pressed: options are [value, text]. */
export function choice(label, options, chosen, pick) {
  return h(
    "div",
    { class: "choice", role: "group", "aria-label": label },
    options.map(([value, text]) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(value === chosen),
          "data-key": `${label} ${value}`,
          onclick: () => pick(value),
        },
        text,
      ),
    ),
  );
}

/** Returns a <select> of options [value, text]. */
export function select(options, chosen, pick, label) {
  return h(
    "select",
    { "aria-label": label, "data-key": label, onchange: (event) => pick(options[event.target.selectedIndex][0]) },
    options.map(([value, text]) => h("option", { selected: value === chosen }, text)),
  );
}
