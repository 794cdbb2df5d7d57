// The logit lens: what each layer would say, and which parts the chosen logit is the sum of.

import { bars, hover, legend, lines } from "../charts.js";
import { onColour, scale } from "../colour.js";
import { choice, fill, h, number, percent } from "../dom.js";
import { ask, change, state } from "../state.js";

const TOP = 5; // as in analysis.js
const wanted = { target: "likeliest" };

export const lensView = {
  id: "lens",
  title: "Logit lens",
  doc: "logit-lens",
  code: "model/gpt.py",
  about: [
    "If the model stopped after this layer, what would it say next? Each layer's own stream goes through the final norm and the head.",
    "Below, the chosen logit is taken apart: it is exactly the sum of what each head and MLP wrote into the stream.",
  ],
  draw(root) {
    const parts = h("section", { class: "card" });
    const words = lensTable();
    root.append(words, legend("0%", "100%"), h("div", { class: "two" }, byLayer(), parts));
    const chosen = words.querySelector("tfoot .at");
    words.scrollLeft = Math.max(0, chosen.offsetLeft + chosen.offsetWidth - words.clientWidth + 40);
    return drawParts(parts);
  },
};

const pointName = (point) => (point ? `block ${point - 1}` : "embedding");

function lensTable() {
  const { lens, tops } = state.analysis,
    colour = scale(1),
    rows = Array.from({ length: lens.points }, (_, i) => lens.points - 1 - i);
  const cell = (point, t) => {
    const place = point * lens.T + t,
      right = lens.top[place * TOP] === state.ids[t + 1];
    return h(
      "td",
      {
        class: `${t === state.at ? "at" : ""}${right ? " right" : ""}`,
        style: onColour(colour(lens.p[place * TOP])),
      },
      tops[place * TOP],
    );
  };
  const body = h(
    "tbody",
    {},
    rows.map((point) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, pointName(point)),
        state.tokens.map((_, t) => cell(point, t)),
      ),
    ),
  );
  const placeOf = ({ target }) => {
    const found = target.closest("td");
    return found && { point: rows[found.parentElement.sectionRowIndex], t: found.cellIndex - 1 };
  };
  body.addEventListener("click", (event) => {
    const found = placeOf(event);
    if (found) change({ at: found.t });
  });
  hover(body, (event) => {
    const found = placeOf(event);
    if (!found) return "";
    const first = (found.point * lens.T + found.t) * TOP;
    const said = Array.from({ length: 3 }, (_, k) => `${tops[first + k]} ${percent(lens.p[first + k])}`);
    return `${pointName(found.point)} after “${state.tokens[found.t].shown}”: ${said.join(", ")}`;
  });
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "the likeliest token at each layer and place" },
    h(
      "table",
      { class: "lens" },
      body,
      h(
        "tfoot",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "row" }, "text"),
          state.tokens.map(({ shown }, t) => h("td", { class: t === state.at ? "at" : null }, shown)),
        ),
      ),
    ),
  );
}

function byLayer() {
  const { lens } = state.analysis,
    at = state.at,
    next = state.tokens[at + 1],
    points = [...Array(lens.points).keys()];
  const ticks = points.map((x) => ({ x, text: x ? String(x - 1) : "emb" })),
    of = (array) => points.map((point) => array[point * lens.T + at]);
  const entropy = lines([{ values: of(lens.entropy), kind: "main" }], {
    ticks,
    low: 0,
    height: 150,
    label: "entropy of the prediction by layer",
  });
  return h(
    "section",
    { class: "card" },
    h("h3", {}, "After “", h("b", {}, state.tokens[at].shown), "”"),
    next
      ? [
          h(
            "p",
            { class: "note" },
            `The probability of “${next.shown}”, the token that comes next in the text, by layer; its rank was ${of(lens.rank).map(number).join(" → ")}.`,
          ),
          lines([{ values: of(lens.logp).map(Math.exp), kind: "main" }], {
            ticks,
            low: 0,
            high: 1,
            height: 150,
            format: percent,
            label: "probability of the next token by layer",
          }),
        ]
      : h("p", { class: "note" }, "This is the last token: the text says nothing of what comes next."),
    h("h4", {}, "Uncertainty, nats"),
    entropy,
  );
}

async function drawParts(root) {
  const { lens } = state.analysis,
    at = state.at,
    last = ((lens.points - 1) * lens.T + at) * TOP;
  const likeliest = lens.top[last],
    next = state.ids[at + 1],
    target = wanted.target === "next" && next !== undefined ? next : likeliest;
  const shown = target === likeliest ? state.analysis.tops[last] : state.tokens[at + 1].shown;
  const { parts, logit } = await ask("attribution", { position: at, target });
  const cap = state.head.config.logit_softcap;
  const rows = [...parts].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)),
    shownRows = rows.slice(0, 14),
    rest = rows.slice(14);
  fill(
    root,
    h("h3", {}, "Who wrote the logit of “", h("b", {}, shown), "”"),
    choice(
      "logit",
      [
        ["likeliest", "likeliest token"],
        ["next", "next in the text"],
      ],
      wanted.target,
      (value) => {
        wanted.target = value;
        drawParts(root);
      },
    ),
    bars(
      [
        ...shownRows,
        ...(rest.length
          ? [{ label: `${rest.length} smaller parts`, value: rest.reduce((sum, { value }) => sum + value, 0) }]
          : []),
      ],
      { signed: true, label: "parts of the logit" },
    ),
    h(
      "p",
      { class: "note" },
      `Together ${number(parts.reduce((sum, { value }) => sum + value, 0))}, the logit${cap ? ` before the soft cap (after it ${number(logit)})` : ` (${number(logit)})`}. Norms are taken with the mean and deviation that they had here.`,
    ),
  );
}
