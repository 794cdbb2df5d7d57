// Embeddings: the words in two dimensions, the neighbours of one, and the positions.

import { bars, heatMap, hover, legend, peak } from "../charts.js";
import { css, isDark, scale } from "../colour.js";
import { fill, h, number, percent } from "../dom.js";
import { ask, state } from "../state.js";

const map = { found: null, places: null, near: null, size: null, id: null };

export const embeddingsView = {
  id: "embeddings",
  title: "Embeddings",
  doc: "embeddings",
  code: "inference/embeddings.py",
  about: [
    "Each token of the vocabulary has a row of numbers, its embedding; tokens that are used in the same way end up near each other.",
    "The map shows the two directions in which words differ most; the list compares whole rows, so trust it more than the map.",
  ],
  async draw(root) {
    const area = h("section", { class: "card" }),
      side = h("section", { class: "card", "aria-live": "polite" }),
      places = h("section", { class: "card" });
    root.append(h("div", { class: "two" }, area, side), places);
    map.found ??= await ask("map");
    const shownInPrompt = state.ids[state.at];
    if (map.id === null)
      map.id = map.found.ids.includes(shownInPrompt)
        ? shownInPrompt
        : map.found.ids[Math.min(120, map.found.ids.length - 1)];
    const pick = (id) => {
      map.id = id;
      drawMap(area, pick);
      return drawNear(side, pick);
    };
    await Promise.all([pick(map.id), drawPositions(places)]);
  },
};

function drawMap(root, pick) {
  const { ids, x, y, shares, tokens } = map.found,
    canvas = h("canvas", {
      class: "map",
      role: "img",
      "aria-label": `map of ${ids.length} words; the list next to it names the neighbours of the chosen one`,
    });
  fill(
    root,
    h("h3", {}, "Map of the words"),
    canvas,
    h(
      "p",
      { class: "note" },
      `${ids.length.toLocaleString("en")} words by PCA: the two directions hold ${percent(shares[0] + shares[1])} of what differs. Point to read a word, click to choose it.`,
    ),
  );
  new ResizeObserver(() => {
    if (canvas.isConnected && map.near && !same(map.size, sizeOf(canvas))) paintMap(canvas, map.found, map.id);
  }).observe(canvas);
  const nearest = (event) => {
    const box = canvas.getBoundingClientRect(),
      px = event.clientX - box.left,
      py = event.clientY - box.top,
      at = placed(map.size, map.found);
    let best = 0,
      least = Infinity;
    for (let i = 0; i < ids.length; i++) {
      const d = (at.x(x[i]) - px) ** 2 + (at.y(y[i]) - py) ** 2;
      if (d < least) {
        least = d;
        best = i;
      }
    }
    return best;
  };
  hover(canvas, (event) => tokens[nearest(event)]);
  canvas.addEventListener("click", (event) => pick(ids[nearest(event)]));
}

/** Returns the values between which nearly all are: a few outliers would push the rest together. */
function range(values) {
  const sorted = values.slice().sort();
  return [sorted[Math.floor(sorted.length * 0.004)], sorted[Math.ceil(sorted.length * 0.996) - 1]];
}

const sizeOf = (canvas) => ({ width: canvas.clientWidth, height: canvas.clientHeight });
const same = (a, b) => a?.width === b.width && a?.height === b.height;

function placed({ width, height }, found) {
  found.ranges ??= [range(found.x), range(found.y)];
  const pad = 26,
    [[x0, x1], [y0, y1]] = found.ranges,
    clamp = (share) => Math.max(0, Math.min(1, share));
  return {
    x: (value) => pad + clamp((value - x0) / (x1 - x0 || 1)) * (width - 2 * pad),
    y: (value) => pad + clamp((value - y0) / (y1 - y0 || 1)) * (height - 2 * pad),
  };
}

function paintMap(canvas, found, chosen) {
  const ratio = devicePixelRatio || 1,
    { ids, x, y } = found,
    size = sizeOf(canvas), // before the canvas changes, which costs a layout
    letters = Math.max(11, parseFloat(getComputedStyle(canvas).fontSize) * 0.75),
    context = canvas.getContext("2d"),
    at = placed(size, found),
    near = new Set(map.near.map(({ id }) => id)),
    kindOf = (id) => (id === chosen ? 0 : near.has(id) ? 1 : 2),
    strong = isDark() ? "#ffb072" : "#b4521d";
  map.size = size;
  canvas.width = size.width * ratio;
  canvas.height = size.height * ratio;
  context.scale(ratio, ratio);
  const dots = ids.map((id, i) => ({
    kind: kindOf(id),
    x: at.x(x[i]),
    y: at.y(y[i]),
    word: found.tokens[i].replace(/^·/, ""),
  }));
  dots.sort((a, b) => a.kind - b.kind);
  const styles = [
    { radius: 5, colour: strong, alpha: 1 },
    { radius: 3.5, colour: strong, alpha: 1 },
    { radius: 2.2, colour: css(scale(1)(0.62)), alpha: 0.55 },
  ];
  for (const { kind, x, y } of dots.toReversed()) {
    const { radius, colour, alpha } = styles[kind];
    context.fillStyle = colour;
    context.globalAlpha = alpha;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
  writeWords(context, dots, letters, size, [strong, strong, isDark() ? "#c9d3df" : "#39424e"]);
}

/** Writes the chosen word, then its neighbours and others where there is room: right of the dot, or left of it. */
function writeWords(context, dots, letters, size, inks) {
  const own = dots.filter(({ kind }) => kind < 2),
    taken = own.map(({ x, y }) => [x - 3.5, y - 3.5, x + 3.5, y + 3.5]);
  const free = (box) =>
    taken.every((other) => box[0] > other[2] || other[0] > box[2] || box[1] > other[3] || other[1] > box[3]);
  for (const { kind, x, y, word } of dots) {
    if (taken.length > own.length + 160) break;
    context.font = `${kind === 0 ? "bold " : ""}${letters}px system-ui, sans-serif`;
    const top = y - 0.7 * letters - 2,
      bottom = y + 0.7 * letters + 2;
    if (kind > 0 && !free([x + 4, top, x + 9, bottom]) && !free([x - 9, top, x - 4, bottom])) continue;
    const { width } = context.measureText(word);
    for (const left of [x + 7, x - 7 - width]) {
      const box = [left - 3, top, left + width + 3, bottom];
      if (box[0] < 0 || box[2] > size.width || (kind > 0 && !free(box))) continue;
      taken.push(box);
      context.fillStyle = inks[kind];
      context.fillText(word, left, y + 0.35 * letters);
      break;
    }
  }
}

async function drawNear(root, pick) {
  const id = map.id,
    { ids, tokens } = map.found,
    near = await ask("near", { id, count: 12 });
  if (id !== map.id) return;
  map.near = near;
  const input = h("input", {
      type: "search",
      placeholder: "find a word",
      "aria-label": "find a word",
      "data-key": "find",
      onchange: ({ target }) => {
        const word = target.value.trim(),
          found = tokens.findIndex((token) => token.replace(/^·/, "") === word);
        if (found < 0) {
          note.textContent = `“${word}” is not one token of this vocabulary.`;
          return;
        }
        pick(ids[found]);
      },
    }),
    note = h("p", { class: "wrong", role: "status" });
  fill(
    root,
    h("h3", {}, "Nearest to “", h("b", {}, tokens[ids.indexOf(id)] ?? String(id)), "”"),
    input,
    note,
    bars(
      near.map((row) => ({
        key: row.id,
        label: row.shown,
        value: Math.max(0, row.cosine),
        shown: number(row.cosine),
        pick: () => pick(row.id),
      })),
      { top: 1, label: "cosine of the embeddings" },
    ),
    h("p", { class: "note" }, "The figure is the cosine of the two rows: 1 is the same direction, 0 none in common."),
  );
  const canvas = root.parentElement.querySelector("canvas.map");
  if (canvas) paintMap(canvas, map.found, id);
}

async function drawPositions(root) {
  map.places ??= await ask("positions");
  const { kind, values, rows, columns } = map.places;
  const words = {
    learned: "One learned row for each position, added to the token's.",
    sinusoidal: "Sines and cosines of ever longer waves, added to the token's row; nothing is learned.",
    rotary:
      "Cosine and sine of the angle by which each pair of numbers in a query and a key is turned; nothing is added to the stream.",
  };
  if (kind === "none") {
    fill(
      root,
      h("h3", {}, "Positions"),
      h(
        "p",
        { class: "note" },
        "This model is not told positions: only the causal mask and the window tell it what comes first.",
      ),
    );
    return;
  }
  const top =
    kind === "learned"
      ? Math.min(peak(values), 4 * Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length))
      : 1;
  fill(
    root,
    h("h3", {}, `Positions: ${kind}`),
    h("p", { class: "note" }, `${words[kind]} A row is a position, a column one of ${columns} numbers.`),
    h(
      "div",
      { class: "heatbox" },
      heatMap(values, rows, columns, {
        signed: true,
        top,
        label: `${kind} positions`,
        name: (row, column, value) => `position ${row} · column ${column} · ${number(value)}`,
      }),
    ),
    legend(`−${number(top)}`, number(top), true),
  );
}
