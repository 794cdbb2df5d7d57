// Interventions: parts switched off, numbers of another prompt in place of this one's, other rules; and what changes.

import { bars, hover } from "../charts.js";
import { onColour, scale } from "../colour.js";
import { fill, h, labelled, number, percent, select } from "../dom.js";
import { ask, rules, state } from "../state.js";

const edits = {
  off: new Set(),
  patching: false,
  site: "stream",
  layer: 0,
  from: 0,
  text: "",
  other: [],
  effects: null,
};
const RULES = [
  ["temperature", 0, 2, 0.05, "1: as the model believes; 0: greedy"],
  ["top_k", 0, 100, 1, "the k likeliest; 0: all"],
  ["top_p", 0, 1, 0.01, "the likeliest that hold this share; 0: all"],
  ["min_p", 0, 0.5, 0.01, "at least this times the likeliest; 0: all"],
];

export const interventionsView = {
  id: "interventions",
  title: "Interventions",
  doc: "interventions",
  code: "model/generate.py",
  about: [
    "To find out what a part does, take it away: switch off a head or an MLP, or put another prompt's numbers in its place, and see the next token's distribution move.",
    "The outlined bars are the unchanged model, the full ones the changed one, both under the same rules.",
  ],
  draw(root) {
    const result = h("section", { class: "card", "aria-live": "polite" }),
      update = () => drawResult(result);
    root.append(
      h(
        "div",
        { class: "two" },
        h(
          "div",
          {},
          h("section", { class: "card" }, h("h3", {}, "Switch off"), switches(update)),
          h("section", { class: "card" }, h("h3", {}, "Patch"), patchControls(update)),
          h("section", { class: "card" }, h("h3", {}, "Rules"), ruleControls(update)),
        ),
        result,
      ),
    );
    return update();
  },
};

/** Returns sliders for the shared rules; `update` is called when one moves. */
export function ruleControls(update) {
  return h(
    "div",
    { class: "sliders" },
    RULES.map(([name, min, max, step, note]) => {
      const output = h("output", {}, rules[name] === null ? "off" : String(rules[name]));
      return labelled(name.replace("_", "-"), [
        h("input", {
          type: "range",
          min,
          max,
          step,
          value: String(rules[name] ?? 0),
          "data-key": `rule ${name}`,
          title: note,
          oninput: ({ target }) => {
            const value = Number(target.value);
            rules[name] = name !== "temperature" && value === 0 ? null : value;
            output.textContent = rules[name] === null ? "off" : String(rules[name]);
            update();
          },
        }),
        output,
      ]);
    }),
  );
}

const moved = (before, after) =>
  before === after ? "" : `${after > before ? "+" : "−"}${percent(Math.abs(after - before))}`;

function switches(update) {
  const { L, H } = state.info,
    grid = h("div", { class: "switches", style: { "--heads": String(H) } });
  const draw = () =>
    fill(
      grid,
      h("span"),
      Array.from({ length: H }, (_, head) => h("span", { class: "top" }, `head ${head}`)),
      h("span", { class: "top" }, "all"),
      h("span", { class: "top" }, "MLP"),
      Array.from({ length: L }, (_, layer) => [
        h("span", { class: "side" }, `block ${layer}`),
        [...Array.from({ length: H }, (_, head) => `head ${layer} ${head}`), `attention ${layer}`, `mlp ${layer}`].map(
          toggle,
        ),
      ]),
    );
  const toggle = (name) => {
    const off = edits.off.has(name),
      effect = edits.effects?.changes[name];
    const top = edits.effects ? Math.max(...Object.values(edits.effects.changes).map(Math.abs)) : 0;
    const button = h(
      "button",
      {
        type: "button",
        class: "switch",
        "aria-pressed": String(off),
        "aria-label": `${name} off`,
        "data-key": name,
        style: effect === undefined || off ? {} : onColour(scale(top, true)(effect)),
        onclick: () => {
          if (!edits.off.delete(name)) edits.off.add(name);
          draw();
          grid.querySelector(`[data-key="${name}"]`)?.focus();
          update();
        },
      },
      off ? "off" : effect === undefined ? "on" : number(effect),
    );
    return effect === undefined
      ? button
      : hover(button, () => `${name} off: log P of “${edits.effects.shown}” changes by ${number(effect)} nats`);
  };
  draw();
  const measure = async () => {
    const ids = prefix(),
      last = ((state.analysis.lens.points - 1) * state.analysis.lens.T + state.at) * 5;
    const found = await ask("sweep", { ids, target: state.analysis.lens.top[last] });
    edits.effects = { ...found, shown: state.analysis.tops[last] };
    draw();
  };
  if (edits.effects && edits.effects.of !== state.ids) edits.effects = null;
  draw();
  return [
    h("div", { class: "scroll" }, grid),
    h(
      "div",
      { class: "buttons" },
      h(
        "button",
        {
          type: "button",
          "data-key": "sweep",
          onclick: async () => {
            await measure();
            edits.effects.of = state.ids;
            draw();
          },
        },
        "Measure each",
      ),
      h(
        "button",
        {
          type: "button",
          "data-key": "all on",
          onclick: () => {
            edits.off.clear();
            edits.effects = null;
            draw();
            update();
          },
        },
        "All on",
      ),
    ),
    h(
      "p",
      { class: "note" },
      "“Measure each” switches off every part alone and writes by how many nats the likeliest token's log-probability changes.",
    ),
  ];
}

function patchControls(update) {
  const layers = [[-1, "embedding"], ...Array.from({ length: state.info.L }, (_, layer) => [layer, `block ${layer}`])];
  const sites = [
      ["stream", "residual stream"],
      ["attention", "what attention adds"],
      ["mlp", "what the MLP adds"],
    ],
    chosen = h("div", { class: "scroll" });
  const tokens = async () => {
    try {
      const found = await ask("tokenize", {
        text: edits.text || state.text,
        begin: state.begin,
        special: state.special,
      });
      edits.other = found.ids.slice(0, state.info.most);
      edits.from = Math.min(edits.from, edits.other.length - 1);
      fill(
        chosen,
        h(
          "div",
          { class: "reading" },
          found.tokens.slice(0, state.info.most).map(({ shown }, i) =>
            h(
              "button",
              {
                type: "button",
                class: `token${i === edits.from ? " at" : ""}`,
                "aria-pressed": String(i === edits.from),
                onclick: () => {
                  edits.from = i;
                  tokens();
                },
              },
              shown,
            ),
          ),
        ),
      );
      update();
    } catch (error) {
      fill(chosen, h("p", { class: "wrong" }, error.message));
    }
  };
  const inside = h(
    "div",
    { hidden: !edits.patching },
    h(
      "p",
      { class: "note" },
      `The numbers of the chosen token of this other prompt replace those of “${state.tokens[state.at].shown}”.`,
    ),
    h("textarea", {
      rows: 2,
      "aria-label": "the other prompt",
      "data-key": "other prompt",
      value: edits.text || state.text,
      oninput: ({ target }) => {
        edits.text = target.value;
        tokens();
      },
    }),
    chosen,
    h(
      "div",
      { class: "buttons" },
      select(
        sites,
        edits.site,
        (value) => {
          edits.site = value;
          if (value !== "stream") edits.layer = Math.max(0, edits.layer);
          update();
        },
        "what is patched",
      ),
      select(
        layers,
        edits.layer,
        (value) => {
          edits.layer = edits.site === "stream" ? value : Math.max(0, value);
          update();
        },
        "where",
      ),
    ),
  );
  if (edits.patching) tokens();
  return [
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        checked: edits.patching,
        "data-key": "patching",
        onchange: ({ target }) => {
          edits.patching = target.checked;
          inside.hidden = !edits.patching;
          if (edits.patching) tokens();
          else update();
        },
      }),
      " take an activation from another prompt",
    ),
    inside,
  ];
}

const prefix = () => state.ids.slice(0, state.at + 1);
let drawing = 0;

async function drawResult(root) {
  const turn = ++drawing,
    ids = prefix();
  const patch =
    edits.patching && edits.other.length
      ? { site: edits.site, layer: edits.layer, position: state.at, from: edits.from }
      : null;
  try {
    const { rows, divergence, kept } = await ask("compare", {
      ids,
      off: [...edits.off],
      patch,
      other: edits.other,
      rules,
    });
    if (turn !== drawing) return;
    fill(
      root,
      h("h3", {}, "After “", h("b", {}, state.tokens[state.at].shown), "”"),
      h(
        "div",
        { class: "compared" },
        bars(
          rows.map((row) => ({
            label: row.shown,
            value: row.after,
            before: row.before,
            shown: `${percent(row.after)} ${moved(row.before, row.after)}`,
            title: `${row.shown}: ${percent(row.before)} unchanged, ${percent(row.after)} changed`,
          })),
          {
            top: Math.max(...rows.flatMap(({ before, after }) => [before, after])),
            label: "the next token, unchanged and changed",
          },
        ),
      ),
      h(
        "dl",
        { class: "figures" },
        h("dt", {}, "divergence from the unchanged model"),
        h("dd", {}, `${number(divergence)} nats`),
        h("dt", {}, "tokens that the rules keep"),
        h("dd", {}, kept.toLocaleString("en")),
      ),
    );
  } catch (error) {
    if (turn === drawing) fill(root, h("p", { class: "wrong", role: "alert" }, error.message));
  }
}
