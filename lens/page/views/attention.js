// Attention: every head of every layer, one head in full, what kind of head it is, and the stated measures of that.

import { heatMap, hover, legend, lines, reading } from "../charts.js";
import { fill, h, number, percent } from "../dom.js";
import { change, state } from "../state.js";

const chosenHead = { layer: 0, head: 0, hovered: null };
const LEAST = 0.4; // share of a head's reading from which it is called a kind
const KINDS = [
  ["induction", "induction head", "reads what followed this token earlier"],
  ["previous", "previous-token head", "reads the token before"],
  ["first", "first-token head", "rests on the first token"],
  ["self", "self head", "reads the token itself"],
];

export const attentionView = {
  id: "attention",
  title: "Attention",
  doc: "attention",
  code: "model/attention.py",
  about: [
    "Attention lets a token read earlier ones: each head averages their values, and the weights of a row sum to 1.",
    "Rows are the tokens that read, columns the tokens that are read; some heads do one thing, and are named for it.",
  ],
  draw(root) {
    const { H } = state.info;
    const detail = h("section", { class: "card" });
    const pick = (layer, head) => {
      Object.assign(chosenHead, { layer, head });
      for (const button of root.querySelectorAll(".headmap"))
        button.setAttribute("aria-pressed", String(button.dataset.key === `head ${layer} ${head}`));
      drawHead(detail);
    };
    root.append(
      h(
        "div",
        { class: "two" },
        h(
          "div",
          {},
          h(
            "div",
            { class: "heads", style: { "--heads": String(H + (H > 1)) } },
            state.analysis.attention.map((weights, layer) =>
              Array.from({ length: H + (H > 1) }, (_, head) => small(weights, layer, head, pick)),
            ),
          ),
          legend("0", "1"),
          h(
            "p",
            { class: "note" },
            `A head is named if its measure is at least ${percent(LEAST)}: the mean weight on that token over this prompt, from the third token on; for induction, over two equal runs of random tokens.`,
          ),
        ),
        detail,
      ),
    );
    drawHead(detail);
  },
};

/** Returns the kind of a head, [measure, name, what it does], or null. */
export function kindOf(layer, head) {
  if (head === state.info.H) return null;
  const measures = measuresOf(layer, head);
  const best = KINDS.filter(([measure]) => measures[measure] >= LEAST).sort(
    (a, b) => measures[b[0]] - measures[a[0]],
  )[0];
  return best ?? null;
}

/** Returns the measures of a head, or their means over the heads of a layer if the head is "H", one past the last. */
function measuresOf(layer, head) {
  const all = state.analysis.heads[layer].map((own, each) => ({
    ...own,
    induction: state.info.induction[layer][each],
  }));
  if (head < all.length) return all[head];
  const mean = (of) => all.reduce((sum, own) => sum + of(own), 0) / all.length;
  const means = Object.fromEntries(
    ["previous", "first", "self", "entropy", "induction"].map((name) => [name, mean((own) => own[name])]),
  );
  return { ...means, distances: all[0].distances.map((_, far) => mean((own) => own.distances[far])) };
}

/** Returns the weights (T, T) of a head, or their mean over the heads. */
function matrixOf(weights, head) {
  const { H } = state.info,
    size = state.analysis.lens.T ** 2;
  if (head < H) return weights.subarray(head * size, (head + 1) * size);
  const mean = new Float32Array(size);
  for (let i = 0; i < H * size; i++) mean[i % size] += weights[i] / H;
  return mean;
}

const nameOf = (layer, head) => (head === state.info.H ? `${layer} mean` : `${layer}.${head}`);

function small(weights, layer, head, pick) {
  const { T } = state.analysis.lens,
    kind = kindOf(layer, head);
  const button = h(
    "button",
    {
      type: "button",
      class: "headmap",
      "data-key": `head ${layer} ${head}`,
      "aria-pressed": String(layer === chosenHead.layer && head === chosenHead.head),
      "aria-label": `layer ${layer}, ${head === state.info.H ? "mean of the heads" : `head ${head}`}${kind ? `, ${kind[1]}` : ""}`,
      onclick: () => pick(layer, head),
    },
    heatMap(matrixOf(weights, head), T, T, { top: 1, root: true }),
    h("span", {}, nameOf(layer, head), kind ? h("em", {}, kind[1].replace(" head", "")) : null),
  );
  return kind ? hover(button, () => `${layer}.${head}: ${kind[2]}`) : button;
}

function drawHead(root) {
  const { layer, head } = chosenHead,
    { T } = state.analysis.lens,
    tokens = state.tokens,
    weights = matrixOf(state.analysis.attention[layer], head);
  const measures = measuresOf(layer, head),
    kind = kindOf(layer, head),
    read = h("div");
  const drawReading = (row) => {
    const own = Array.from(weights.subarray(row * T, row * T + T)),
      hidden = own.map((p, j) => (j > row ? null : p));
    fill(
      read,
      h("h4", {}, "“", h("b", {}, tokens[row].shown), "” reads"),
      reading(tokens, hidden, {
        top: Math.max(...own),
        at: row,
        pick: (at) => change({ at }),
        name: (j) => (j > row ? "later: not seen" : `${tokens[j].shown} · ${percent(own[j])}`),
      }),
    );
  };
  const cells =
    T <= 40
      ? labelledMap(weights, T)
      : heatMap(weights, T, T, {
          top: 1,
          root: true,
          label: `attention of ${nameOf(layer, head)}`,
          pick: (row) => change({ at: row }),
          name: (row, column, p) =>
            column > row ? "" : `“${tokens[row].shown}” reads “${tokens[column].shown}”: ${percent(p)}`,
        });
  cells.addEventListener("pointermove", (event) => {
    const box = (cells.querySelector?.("canvas") ?? cells).getBoundingClientRect(),
      row = Math.floor(((event.clientY - box.top) / box.height) * T);
    if (row >= 0 && row < T && row !== chosenHead.hovered) {
      chosenHead.hovered = row;
      drawReading(row);
    }
  });
  cells.addEventListener("pointerleave", () => {
    chosenHead.hovered = null;
    drawReading(state.at);
  });
  fill(
    root,
    h(
      "h3",
      {},
      head === state.info.H ? `Layer ${layer}, mean of the heads` : `Layer ${layer}, head ${head}`,
      kind ? h("em", { class: "badge" }, kind[1]) : null,
    ),
    cells,
    read,
    h(
      "dl",
      { class: "figures" },
      KINDS.flatMap(([measure, name]) => [
        h("dt", {}, name.replace(" head", "")),
        h("dd", {}, percent(measures[measure])),
      ]),
      h("dt", {}, "entropy"),
      h("dd", {}, `${number(measures.entropy)} nats`),
    ),
    h("h4", {}, "How far back it reads"),
    lines([{ values: measures.distances, kind: "main" }], {
      low: 0,
      height: 140,
      format: percent,
      label: "mean weight by distance",
      ticks: Array.from(measures.distances.keys(), (x) => ({ x, text: String(x) })),
    }),
  );
  drawReading(state.at);
}

function labelledMap(weights, T) {
  const { tokens } = state,
    map = heatMap(weights, T, T, {
      top: 1,
      root: true,
      label: "attention weights",
      pick: (row) => change({ at: row }),
      name: (row, column, p) =>
        column > row ? "" : `“${tokens[row].shown}” reads “${tokens[column].shown}”: ${percent(p)}`,
    });
  return h(
    "div",
    { class: "labelled", style: { "--cells": String(T) } },
    h(
      "div",
      { class: "rows" },
      tokens.map(({ shown }, row) => h("span", { class: row === state.at ? "at" : null }, shown)),
    ),
    map,
  );
}
