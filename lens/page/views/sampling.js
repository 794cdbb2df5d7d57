// Sampling, live: a text that grows token by token, the distribution it is drawn from, the cache; and beam search.

import { distribution, hover, treePicture } from "../charts.js";
import { fill, h, number, percent, s } from "../dom.js";
import { ask, rules, state } from "../state.js";
import { ruleControls } from "./interventions.js";

const live = { of: null, drawn: [], running: null, seed: 1, chosen: null };

export const samplingView = {
  id: "sampling",
  title: "Sampling",
  doc: "sampling",
  code: "model/generate.py",
  about: [
    "A text grows one token at a time: the model gives a distribution, rules cut and sharpen it, and chance draws from what is left.",
    "Step through it, choose a token yourself, take steps back, or let it run; bars in outline are what the model believes, full ones what the rules make of it.",
  ],
  draw(root) {
    const text = h("div", { class: "growing", "aria-live": "polite" }),
      next = h("section", { class: "card" }),
      cache = h("section", { class: "card" }),
      tree = h("section", { class: "card" });
    const update = () => drawNext(text, next, cache);
    root.append(
      h("section", { class: "card" }, text, controls(update)),
      h(
        "div",
        { class: "two" },
        next,
        h("div", {}, h("section", { class: "card" }, h("h3", {}, "Rules"), ruleControls(update)), cache),
      ),
      tree,
    );
    drawBeam(tree);
    return beginText().then(update);
  },
};

async function beginText() {
  if (live.of === state.ids) return;
  live.running?.stop();
  Object.assign(live, { of: state.ids, drawn: [], chosen: null });
  await ask("begin", { name: "sampling", ids: state.ids });
}

function controls(update) {
  const { end } = state.info,
    stop = end === null ? [] : [end],
    run = h("button", { type: "button", class: "main", "data-key": "run" }, "Run");
  const many = async (count, after) => {
    live.running = ask("generate", { name: "sampling", rules, count, seed: live.seed++, stop }, (token) => {
      live.drawn.push(token);
      if (count > 1) drawTextSoon();
    });
    run.textContent = count > 1 ? "Stop" : "Run";
    try {
      await live.running;
    } finally {
      live.running = null;
      run.textContent = "Run";
      after();
    }
  };
  run.addEventListener("click", () => (live.running ? live.running.stop() : many(300, update)));
  const step = () => !live.running && many(1, update);
  const undo = async () => {
    if (live.running || !live.drawn.length) return;
    const { end: ended } = live.drawn.pop();
    if (!ended) await ask("undo", { name: "sampling" });
    update();
  };
  return h(
    "div",
    { class: "buttons" },
    h("button", { type: "button", onclick: step, "data-key": "step" }, "Step"),
    run,
    h("button", { type: "button", onclick: undo, "data-key": "undo" }, "Undo"),
    h(
      "button",
      {
        type: "button",
        "data-key": "restart",
        onclick: () => {
          live.of = null;
          beginText().then(update);
        },
      },
      "Start again",
    ),
  );
}

let textRoot = null;

/** Writes the tokens that were drawn since the last time, once a frame; all of them if some were taken back. */
function drawText() {
  if (textRoot.childElementCount > live.drawn.length + 1 || !textRoot.childElementCount) {
    fill(
      textRoot,
      h(
        "span",
        { class: "given" },
        spelled(state.tokens.filter(({ special }) => !special).flatMap(({ bytes }) => bytes)),
      ),
    );
  }
  textRoot.append(
    ...live.drawn
      .slice(textRoot.childElementCount - 1)
      .map((token) =>
        hover(
          h(
            "span",
            { class: `drawn${token.end ? " end" : ""}` },
            token.end ? " ⏹" : token.shown.startsWith("\\x") ? token.shown : spelled(token.bytes),
          ),
          () => `“${token.shown}” · id ${token.id} · drawn at ${percent(token.p)}`,
        ),
      ),
  );
}

let scheduled = false;

function drawTextSoon() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    drawText();
  });
}

const spelled = (bytes) => new TextDecoder().decode(Uint8Array.from(bytes));

async function drawNext(text, root, cache) {
  textRoot = text;
  drawText();
  const ended = live.drawn.at(-1)?.end;
  try {
    const found = await ask("next", { name: "sampling", rules, count: 20 });
    fill(
      root,
      h("h3", {}, ended ? "The text has ended" : "The next token"),
      h(
        "p",
        { class: "note" },
        `${found.kept.toLocaleString("en")} of ${state.info.V.toLocaleString("en")} tokens pass the rules; here are the 20 likeliest.${ended ? "" : " Choose one to append it."}`,
      ),
      distribution(
        found.rows,
        ended
          ? null
          : async (row) => {
              if (live.running) return;
              await ask("append", { name: "sampling", id: row.id });
              live.drawn.push({ ...row });
              drawNext(text, root, cache);
            },
      ),
    );
    drawCache(cache, found);
  } catch (error) {
    fill(root, h("p", { class: "wrong", role: "alert" }, error.message));
  }
}

function drawCache(root, { used, length }) {
  const { L, K, D } = state.info,
    block = state.head.config.block_size,
    prompt = Math.min(state.ids.length, used),
    width = 480,
    rise = 9;
  const part = (from, count, kind) =>
    Array.from({ length: L }, (_, layer) =>
      s("rect", {
        class: kind,
        x: (from / block) * width,
        y: layer * (rise + 3),
        width: Math.max(0, (count / block) * width),
        height: rise,
      }),
    );
  fill(
    root,
    h("h3", {}, "The cache fills"),
    s(
      "svg",
      {
        viewBox: `0 0 ${width} ${L * (rise + 3)}`,
        class: "cache",
        role: "img",
        "aria-label": `${used} of ${block} places of the cache are used`,
      },
      part(0, block, "room"),
      part(0, prompt, "old"),
      part(prompt, used - prompt, "new"),
    ),
    h(
      "p",
      { class: "note" },
      `Keys and values of ${used} of ${block} tokens, in ${L} layers: ${number((used * L * 2 * K * D * 4) / 1024)} KB. ${length > used ? "The context was full: its older half was dropped." : "A step computes one token, not the whole text."}`,
    ),
  );
}

function drawBeam(root) {
  const drawing = h("div", { class: "scroll" }),
    { end } = state.info,
    note = h(
      "p",
      { class: "note" },
      "The likeliest whole continuation: each step keeps the likeliest few beginnings. Grey ones were dropped; the thick path is the best by mean log-probability.",
    );
  const draw = async () => {
    try {
      fill(
        drawing,
        beamDrawing(await ask("beam", { ids: state.ids, beams: 3, steps: 9, stop: end === null ? [] : [end] })),
      );
    } catch (error) {
      fill(drawing, h("p", { class: "wrong", role: "alert" }, error.message));
    }
  };
  fill(
    root,
    h("h3", {}, "Beam search as a tree"),
    note,
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: draw, "data-key": "beam" }, "Grow the tree")),
    drawing,
  );
}

const shortened = (text) => ([...text].length > 9 ? `${[...text].slice(0, 8).join("")}…` : text);

function beamDrawing(nodes) {
  const step = 104,
    rise = 32,
    columns = new Map(),
    places = [],
    parts = [],
    deepest = Math.max(...nodes.map(({ depth }) => depth));
  nodes.forEach((node, i) => {
    const row = columns.get(node.depth) ?? 0,
      from = node.parent < 0 ? { x: 14, y: 20 } : places[node.parent],
      x = 40 + node.depth * step,
      y = 20 + row * rise;
    columns.set(node.depth, row + 1);
    places[i] = { x: x + 78, y };
    const kind = node.best ? "best" : node.kept ? "kept" : "dropped";
    parts.push(
      s("path", {
        class: `branch ${kind}`,
        d: `M${from.x} ${from.y} C${from.x + 14} ${from.y} ${x - 14} ${y} ${x} ${y}`,
      }),
      hover(
        s(
          "g",
          { class: `node ${kind}` },
          s("rect", { x, y: y - 12, width: 78, height: 24, rx: 6 }),
          s("text", { x: x + 39, y: y + 4, "text-anchor": "middle" }, node.ended ? "⏹" : shortened(node.shown)),
        ),
        () => `“${node.shown}” · log P ${number(node.logp)}`,
      ),
    );
  });
  const width = 140 + (deepest + 1) * step - 80,
    height = 20 + Math.max(...columns.values()) * rise;
  return treePicture("beam search as a tree", width, height, s("circle", { cx: 14, cy: 20, r: 5 }), parts);
}
