// The MLPs: the units that write most for a token, what they raise, and the texts that move them most.

import { bars, heatMap, legend, peak, reading } from "../charts.js";
import { choice, fill, h, number } from "../dom.js";
import { ask, change, state } from "../state.js";

const openUnit = { layer: 0, unit: null };

export const mlpView = {
  id: "mlp",
  title: "MLP",
  doc: "mlp",
  code: "model/layers.py",
  about: [
    "An MLP is a row of units: each looks for one pattern in the stream, and writes one direction into it as far as it finds it.",
    "Choose a unit to see where it is active, which tokens it makes likelier, and the texts that move it most.",
  ],
  draw(root) {
    const { L } = state.info,
      { units, lens } = state.analysis,
      detail = h("section", { class: "card", "aria-live": "polite" }),
      list = h("section", { class: "card" });
    openUnit.layer = Math.min(openUnit.layer, L - 1);
    const flat = Float32Array.from(units.flatMap((row) => [...row]));
    root.append(
      h(
        "section",
        { class: "card" },
        h("h3", {}, "The loudest unit of each layer, by token"),
        h(
          "div",
          { class: "heatbox low" },
          heatMap(flat, L, lens.T, {
            label: "largest activation by layer and token",
            pick: (layer, at) => {
              openUnit.layer = layer;
              openUnit.unit = null;
              change({ at });
            },
            name: (layer, t, value) => `layer ${layer} · “${state.tokens[t].shown}” · ${number(value)}`,
          }),
        ),
        legend("0", number(peak(flat))),
      ),
      h("div", { class: "two" }, list, detail),
    );
    return drawUnits(list, detail);
  },
};

async function drawUnits(list, detail) {
  const { layer } = openUnit,
    found = await ask("units", { layer, position: state.at, count: 12 });
  const layers = Array.from({ length: state.info.L }, (_, i) => [i, `layer ${i}`]);
  if (!found.some(({ unit }) => unit === openUnit.unit)) openUnit.unit = found[0].unit;
  fill(
    list,
    h("h3", {}, "Units that write most for “", h("b", {}, state.tokens[state.at].shown), "”"),
    choice("layer", layers, layer, (value) => {
      Object.assign(openUnit, { layer: value, unit: null });
      drawUnits(list, detail);
    }),
    bars(
      found.map(({ unit, value, size }) => ({
        label: `unit ${unit}`,
        value: size,
        shown: number(value),
        pressed: unit === openUnit.unit,
        title: `activation ${number(value)}, writes a row of length ${number(size)}`,
        pick: () => {
          openUnit.unit = unit;
          drawUnits(list, detail);
        },
      })),
      { label: "strongest units" },
    ),
    h("p", { class: "note" }, "The figure is the activation, the bar the length of what the unit adds to the stream."),
  );
  return drawUnit(detail);
}

async function drawUnit(root) {
  const { layer, unit } = openUnit,
    { values, raises, lowers, examples } = await ask("unit", { layer, unit });
  if (layer !== openUnit.layer || unit !== openUnit.unit) return;
  const words = (tokens) =>
    h(
      "p",
      { class: "words" },
      tokens.map(({ shown }) => h("span", { class: "token" }, shown)),
    );
  fill(
    root,
    h("h3", {}, `Layer ${layer}, unit ${unit}`),
    h("h4", {}, "In this prompt"),
    reading(state.tokens, values, {
      signed: true,
      at: state.at,
      pick: (at) => change({ at }),
      name: (t) => number(values[t]),
    }),
    h("h4", {}, "Where active, it raises"),
    words(raises),
    h("h4", {}, "and lowers"),
    words(lowers),
    h("h4", {}, "In the training text"),
    examples
      ? h(
          "ol",
          { class: "examples" },
          examples.map(({ value, at, tokens }) =>
            h(
              "li",
              {},
              h("span", { class: "figure" }, number(value)),
              reading(
                tokens,
                tokens.map((_, i) => (i === at ? value : 0)),
                { signed: true, top: peak(examples.map((example) => example.value)), at },
              ),
            ),
          ),
        )
      : h(
          "p",
          { class: "note" },
          "Texts of the training data are shown by a page made with --index, such as ",
          h("code", {}, "python -m lens RUN --index tokens/stories"),
          ".",
        ),
  );
}
