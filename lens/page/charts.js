// Drawings: heat maps on canvas; bars, lines, reading strips in SVG and HTML. Colours come from colour.js and page.css.

import { css, onColour, paint, scale } from "./colour.js";
import { h, number, percent, s } from "./dom.js";

const tip = h("div", { class: "tip", role: "presentation", hidden: true });
document.body.append(tip);

/** Shows a line of text at the pointer while it is over an element; `text(event)` may return "" for nothing. */
export function hover(element, text) {
  element.addEventListener("pointermove", (event) => {
    const said = text(event);
    tip.hidden = !said;
    if (!said) return;
    tip.textContent = said;
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const y =
      event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18;
    tip.style.setProperty("transform", `translate(${Math.max(4, x)}px, ${y}px)`);
  });
  element.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
  return element;
}

/** Returns the largest |value|. */
export function peak(values) {
  let top = 0;
  for (const value of values) if (Math.abs(value) > top) top = Math.abs(value);
  return top;
}

/** Returns a canvas of rows × columns coloured cells. Options: signed, top (value of the end of the scale), label,
 * name(row, column, value) for the pointer, pick(row, column) for a click. */
export function heatMap(values, rows, columns, options = {}) {
  const { signed = false, top = peak(values), label = "", name = null, pick = null, root = false } = options;
  const canvas = h("canvas", {
    width: columns,
    height: rows,
    class: "heat",
    role: label ? "img" : null,
    "aria-label": label || null,
    "aria-hidden": label ? null : "true",
  });
  const context = canvas.getContext("2d"),
    image = context.createImageData(columns, rows),
    pixels = new Uint32Array(image.data.buffer);
  paint(pixels, values, top, signed, root);
  context.putImageData(image, 0, 0);
  const cell = (event) => {
    const box = canvas.getBoundingClientRect();
    return [
      Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows)),
      Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns)),
    ];
  };
  if (name)
    hover(canvas, (event) => {
      const [row, column] = cell(event);
      return name(row, column, values[row * columns + column]);
    });
  if (pick) canvas.addEventListener("click", (event) => pick(...cell(event)));
  return canvas;
}

/** Returns the legend of a scale: its ends and a strip of colour. */
export function legend(low, high, signed = false) {
  const colour = scale(1, signed),
    stops = Array.from({ length: 9 }, (_, i) => css(colour(signed ? i / 4 - 1 : i / 8)));
  return h(
    "div",
    { class: "legend" },
    h("span", {}, low),
    h("i", { style: { background: `linear-gradient(to right, ${stops.join(",")})` } }),
    h("span", {}, high),
  );
}

/** Returns tokens as a text whose backgrounds show values; options: top, signed, at (marked), pick(index), name(index). */
export function reading(tokens, values, options = {}) {
  const { top = peak(values), signed = false, at = -1, pick = null, name = null } = options,
    colour = scale(top, signed);
  return h(
    "div",
    { class: "reading" },
    tokens.map((token, i) => {
      const known = values[i] !== undefined && values[i] !== null;
      const element = h(
        pick ? "button" : "span",
        {
          class: `token${i === at ? " at" : ""}`,
          type: pick ? "button" : null,
          tabindex: pick ? "-1" : null,
          style: known ? onColour(colour(values[i])) : {},
          onclick: pick ? () => pick(i) : null,
        },
        token.shown,
      );
      if (token.special) element.classList.add("special");
      return name ? hover(element, () => name(i)) : element;
    }),
  );
}

/** Returns horizontal bars: rows are {label, value, shown, title, faint, pick, before}. Signed bars grow from the middle. */
export function bars(rows, { top = peak(rows.map(({ value }) => value)), signed = false, label = "" } = {}) {
  const share = (value) => `${Math.min(100, (Math.abs(value) / (top || 1)) * 100)}%`;
  return h(
    "ul",
    { class: `bars${signed ? " signed" : ""}`, "aria-label": label },
    rows.map((row) => {
      const track = h(
        "span",
        { class: "track" },
        row.before === undefined ? null : h("i", { class: "before", style: { width: share(row.before) } }),
        h("i", { class: row.value < 0 ? "minus" : "plus", style: { width: share(row.value) } }),
      );
      const inside = [
        h("span", { class: "name" }, row.label),
        track,
        h("span", { class: "figure" }, row.shown ?? number(row.value)),
      ];
      const element = h(
        "li",
        { class: row.faint ? "faint" : null },
        row.pick
          ? h(
              "button",
              {
                type: "button",
                "data-key": `bar ${row.key ?? row.label}`,
                "aria-pressed": row.pressed === undefined ? null : String(row.pressed),
                onclick: row.pick,
              },
              inside,
            )
          : inside,
      );
      return row.title ? hover(element, () => row.title) : element;
    }),
  );
}

/** Returns the bars of a distribution: rows {shown, p, raw?}; those that the rules cut off are faint. */
export function distribution(rows, pick = null) {
  return bars(
    rows.map((row) => ({
      key: row.id,
      label: row.shown,
      value: row.p,
      before: row.raw,
      shown: percent(row.p),
      faint: row.p === 0 && row.raw > 0,
      pick: pick && (() => pick(row)),
      title:
        row.raw === undefined
          ? null
          : `${row.shown} · id ${row.id} · ${percent(row.raw)} as the model believes, ${percent(row.p)} under the rules`,
    })),
    { top: Math.max(...rows.map((row) => Math.max(row.p, row.raw ?? 0))), label: "probabilities of the next token" },
  );
}

/** Returns a picture of this size, in which a view has drawn a tree. */
export function treePicture(label, width, height, ...parts) {
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, class: "tree", role: "img", "aria-label": label },
    parts,
  );
}

/** Returns a line chart: series are {name, values, kind ("main", "other", "faint"), x?}. Options: ticks (labels of x),
 * height, low, high, mark (x), pick(x), label, format. */
export function lines(series, options = {}) {
  const { ticks = [], height = 170, label = "", mark = null, pick = null, format = number } = options;
  const width = 560,
    left = 46,
    right = 12,
    above = 12,
    below = ticks.length ? 30 : 12;
  const xs = series.flatMap(({ x, values }) => x ?? [...values.keys()]),
    all = series.flatMap(({ values }) => [...values]).filter(Number.isFinite);
  const low = options.low ?? Math.min(...all),
    high = options.high ?? Math.max(...all),
    end = Math.max(...xs, 1),
    start = Math.min(...xs, 0);
  const px = (x) => left + ((x - start) / (end - start || 1)) * (width - left - right);
  const py = (y) => above + (1 - (y - low) / (high - low || 1)) * (height - above - below);
  const grid = [low, (low + high) / 2, high].map((y) =>
    s(
      "g",
      {},
      s("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
      s("text", { x: left - 8, y: py(y) + 4, "text-anchor": "end" }, format(y)),
    ),
  );
  const every = Math.ceil(ticks.length / 9);
  const marks = ticks.map(({ x, text }, i) =>
    i % every ? null : s("text", { x: px(x), y: height - 10, "text-anchor": "middle" }, text),
  );
  const paths = series.map(({ values, x, kind }) => {
    const points = [...values].map((value, i) => [px(x ? x[i] : i), py(value)]).filter(([, y]) => Number.isFinite(y));
    return s(
      "g",
      { class: `line ${kind}` },
      s("polyline", { points: points.map((point) => point.map((value) => value.toFixed(1)).join(",")).join(" ") }),
      kind === "faint" || points.length > 40 ? null : points.map(([cx, cy]) => s("circle", { cx, cy, r: 3.5 })),
    );
  });
  const names = series.filter(({ name }) => name).map(({ name, kind }) => h("span", { class: `key ${kind}` }, name));
  const drawing = s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": label },
    grid,
    marks,
    mark === null ? null : s("line", { class: "mark", x1: px(mark), x2: px(mark), y1: above, y2: height - below }),
    paths,
  );
  if (pick)
    drawing.addEventListener("click", (event) => {
      const box = drawing.getBoundingClientRect();
      pick(
        start + ((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * (end - start),
      );
    });
  return h("figure", { class: "plot" }, names.length > 1 ? h("figcaption", {}, names) : null, drawing);
}
