// The stack: what flows from the embedding through each block to the head, as real numbers.

import { heatMap, hover, legend, lines, peak } from "../charts.js";
import { choice, fill, h, number } from "../dom.js";
import { ask, state } from "../state.js";

const openPart = { layer: 0, name: "attentionOut" };
// name of a part, what it is, its formula, the line of code (see lens/export.py) and its width
const PARTS = {
  embedding: ["Embedding", "x = token + position", "embedding"],
  attentionRead: ["what attention reads", "norm(x) = (x − mean) / deviation · weight + bias", "norm"],
  q: ["queries", "q = W_q · norm(x), for each head", "qkv"],
  k: ["keys", "k = W_k · norm(x), for each head", "qkv"],
  v: ["values", "v = W_v · norm(x), for each head", "qkv"],
  heads: ["what the heads found", "y = softmax(q kᵀ / √D) v", "mixed"],
  attentionOut: ["what attention adds", "x ← x + W_o · y", "attention"],
  mlpRead: ["what the MLP reads", "norm(x)", "norm"],
  hidden: ["units of the MLP", "h = activation(W_fc · norm(x))", "hidden"],
  mlpOut: ["what the MLP adds", "x ← x + W_proj · h", "mlp"],
  stream: ["the stream after the block", "x, the sum of all that was added", "mlp"],
  final: ["final norm", "norm(x)", "norm"],
  logits: ["logits", "z = norm(x) · Eᵀ, one number for each token of the vocabulary", "head"],
};
const ATTENTION = ["attentionRead", "q", "k", "v", "heads", "attentionOut"],
  MLP = ["mlpRead", "hidden", "mlpOut", "stream"];

export const stackView = {
  id: "stack",
  title: "The stack",
  doc: "the-stack",
  code: "basics/gpt.py",
  about: [
    "Each token is a row of numbers, the residual stream, which every block reads and adds to.",
    "Open any part to see its numbers for this prompt: a row is a token, a column one of its numbers.",
  ],
  draw(root) {
    if (openPart.layer !== null && openPart.layer >= state.info.L) openPart.layer = 0;
    const detail = h("section", { class: "card detail", "aria-live": "polite" }),
      column = h("div", { class: "stations" });
    const show = (layer, name) => {
      Object.assign(openPart, { layer, name });
      for (const station of column.querySelectorAll("button"))
        station.setAttribute("aria-pressed", String(matches(station.dataset)));
      drawDetail(detail, show);
    };
    column.append(
      station(null, "embedding", "Embedding", 0, show),
      ...state.analysis.attention.flatMap((_, layer) => [
        station(layer, "attentionOut", `Block ${layer} · attention`, 1 + 2 * layer, show),
        station(layer, "mlpOut", `Block ${layer} · MLP`, 2 + 2 * layer, show),
      ]),
      station(null, "final", "Final norm", null, show),
      station(null, "logits", "Head: logits", null, show),
    );
    root.append(
      h(
        "div",
        { class: "two wideright" },
        h(
          "div",
          {},
          h("h3", {}, "Residual stream"),
          h(
            "p",
            { class: "note" },
            `The bar is the length of the row of “${state.tokens[state.at].shown}” at that point.`,
          ),
          column,
        ),
        h("div", {}, detail, growth()),
      ),
    );
    return drawDetail(detail, show);
  },
};

const family = (name) => (ATTENTION.includes(name) ? "attentionOut" : MLP.includes(name) ? "mlpOut" : name);
const matches = ({ layer, name }) => name === family(openPart.name) && layer === String(openPart.layer);

function station(layer, name, text, place, show) {
  const { lengths } = state.analysis,
    value = place === null ? null : lengths[place][state.at];
  const top = Math.max(...lengths.map((rows) => rows[state.at]));
  const [what, formula, line] = PARTS[name],
    code = state.head.code[line];
  return hover(
    h(
      "button",
      {
        type: "button",
        class: "station",
        "data-layer": String(layer),
        "data-name": name,
        "data-key": `station ${layer} ${name}`,
        "aria-pressed": String(matches({ layer: String(layer), name })),
        onclick: () => show(layer, name),
      },
      h("span", {}, text),
      value === null ? h("span") : h("i", { style: { width: `${(70 * value) / top}%` } }),
      h("span", { class: "figure" }, value === null ? "" : number(value)),
    ),
    () => `${what}: ${formula.replace(/_/g, " ")}${code ? ` · ${code.file}:${code.line}` : ""}`,
  );
}

function growth() {
  const { lengths } = state.analysis,
    mean = lengths.map((rows) => rows.reduce((a, b) => a + b, 0) / rows.length);
  const ticks = lengths.map((_, x) => ({
    x,
    text: x === 0 ? "emb" : `${Math.floor((x - 1) / 2)}${x % 2 ? "a" : "m"}`,
  }));
  return h(
    "section",
    { class: "card" },
    h("h3", {}, "How the stream grows"),
    h(
      "p",
      { class: "note" },
      "The length of the row after each sublayer: a is attention, m the MLP, the figure the block.",
    ),
    lines(
      [
        { name: `“${state.tokens[state.at].shown}”`, values: lengths.map((rows) => rows[state.at]), kind: "main" },
        { name: "mean of all tokens", values: mean, kind: "other" },
      ],
      { ticks, low: 0, label: "length of the residual stream after each sublayer" },
    ),
  );
}

async function drawDetail(root, show) {
  const { layer, name } = openPart,
    [what, formula, line] = PARTS[name],
    code = state.head.code[line];
  const { values, rows, columns } = await ask("part", { name, layer });
  if (openPart.layer !== layer || openPart.name !== name) return;
  const group = ATTENTION.includes(name) ? ATTENTION : MLP.includes(name) ? MLP : [];
  const own = values.subarray(state.at * columns, (state.at + 1) * columns),
    top = name === "logits" ? peak(values) : quantile(values, 0.995);
  fill(
    root,
    h("h3", {}, layer === null ? what : `Block ${layer}: ${what}`),
    group.length
      ? choice(
          "part of the block",
          group.map((each) => [
            each,
            each === "attentionRead" || each === "mlpRead"
              ? "reads"
              : each === "attentionOut" || each === "mlpOut"
                ? "adds"
                : each,
          ]),
          name,
          (each) => show(layer, each),
        )
      : null,
    h(
      "p",
      { class: "formula", title: code ? `${code.file}, line ${code.line}` : null },
      h("span", {}, withSubscripts(formula)),
      code ? h("code", {}, h("b", {}, `${code.file}:${code.line}`), ` ${code.text}`) : null,
    ),
    h(
      "div",
      { class: "heatbox" },
      heatMap(values, rows, columns, {
        signed: true,
        top,
        label: `${what}: ${rows} tokens × ${columns} numbers`,
        name: (row, column, value) => `${state.tokens[row].shown} · column ${column} · ${number(value)}`,
      }),
    ),
    legend(`−${number(top)}`, number(top), true),
    h(
      "dl",
      { class: "figures" },
      ...pairOf("shape", `${rows} × ${columns}`),
      ...pairOf("this token: length", number(Math.hypot(...own))),
      ...pairOf("mean", number(own.reduce((a, b) => a + b, 0) / columns)),
      ...pairOf("least", number(Math.min(...own))),
      ...pairOf("greatest", number(Math.max(...own))),
    ),
  );
}

/** Returns a formula in which W_q has a subscript. */
const withSubscripts = (formula) =>
  formula.split(/(_\w+)/).map((part) => (part[0] === "_" ? h("sub", {}, part.slice(1)) : part));

const pairOf = (name, value) => [h("dt", {}, name), h("dd", {}, value)];

function quantile(values, share) {
  const some = Float32Array.from(
    { length: Math.min(values.length, 4000) },
    (_, i, count = Math.min(values.length, 4000)) => Math.abs(values[Math.floor((i * values.length) / count)]),
  ).sort();
  return some[Math.floor(share * (some.length - 1))] || 1;
}
