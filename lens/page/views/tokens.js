// Text in: the tokens of the prompt with ids and bytes, and the merges that made a word.

import { treePicture } from "../charts.js";
import { fill, h, number, s } from "../dom.js";
import { ask, change, state } from "../state.js";

export const tokensView = {
  id: "tokens",
  title: "Text in",
  doc: "text-in",
  code: "bpe/tokenizer.py",
  about: [
    "A model reads numbers, so text is cut into tokens, and each token has an id.",
    "The cuts come from byte-pair encoding: it starts from bytes and merges the pairs that were frequent in its training text, the most frequent first.",
  ],
  draw(root) {
    const bytes = state.tokens.reduce((sum, { bytes, special }) => sum + (special ? 0 : bytes.length), 0);
    const count = state.tokens.filter(({ special }) => !special).length,
      word = h("section", { class: "card" });
    root.append(
      h(
        "p",
        { class: "facts" },
        fact([...state.text].length, "characters"),
        fact(bytes, "bytes"),
        fact(count, "tokens"),
        fact(count ? bytes / count : 0, "bytes per token"),
        fact(state.info.V, "ids in the vocabulary"),
      ),
      h("ol", { class: "cards", "aria-label": "tokens with ids and bytes" }, state.tokens.map(card)),
      word,
    );
    return drawTree(word);
  },
};

/** Returns a figure with its unit. */
export function fact(value, unit) {
  return h("span", { class: "fact" }, h("b", {}, number(value)), ` ${unit}`);
}

function card(token, position) {
  return h(
    "li",
    {},
    h(
      "button",
      {
        type: "button",
        tabindex: "-1",
        class: `tokencard c${position % 5}${position === state.at ? " at" : ""}`,
        onclick: () => change({ at: position }),
      },
      h("span", { class: "text" }, token.shown),
      h("span", { class: "id" }, String(token.id)),
      h(
        "span",
        { class: "hex" },
        token.special ? "special" : token.bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" "),
      ),
    ),
  );
}

async function drawTree(root) {
  const word = state.words[state.at];
  if (word === null || word === undefined) {
    fill(
      root,
      h("h3", {}, "How BPE got there"),
      h("p", { class: "note" }, "This token is a special one: no merge makes it. Choose a token of the text."),
    );
    return;
  }
  const trees = await ask("tree", { word: word.slice(0, 60) });
  const merges = trees.reduce((sum, tree) => sum + countMerges(tree), 0);
  fill(
    root,
    h("h3", {}, "How BPE got to ", h("code", {}, word.replace(/ /g, "·"))),
    h(
      "p",
      { class: "note" },
      merges
        ? "From the bytes at the bottom up: each node is one merge. The figure is its rank, so 1 was the first pair that training merged. What has no node above it is a token."
        : "No two neighbours of this word are a pair that was merged: each byte is a token.",
    ),
    h("div", { class: "scroll" }, treeDrawing(trees)),
  );
}

const countMerges = (node) => (node.left ? 1 + countMerges(node.left) + countMerges(node.right) : 0);
const depth = (node) => (node.left ? 1 + Math.max(depth(node.left), depth(node.right)) : 0);

function treeDrawing(trees) {
  const step = 46,
    rise = 56,
    levels = Math.max(...trees.map(depth)),
    parts = [];
  let leaves = 0;
  const place = (node, top) => {
    const y = 26 + (levels - depth(node)) * rise;
    const children = node.left ? [place(node.left), place(node.right)] : [];
    const x = children.length ? (children[0].x + children[1].x) / 2 : 30 + step * leaves++;
    for (const child of children)
      parts.unshift(
        s("path", {
          class: "branch",
          d: `M${x} ${y} C${x} ${(y + child.y) / 2} ${child.x} ${(y + child.y) / 2} ${child.x} ${child.y}`,
        }),
      );
    const width = Math.max(26, 10 + 8.6 * [...node.shown].length);
    parts.push(
      s(
        "g",
        { class: `node${top ? " top" : ""}${node.left ? "" : " leaf"}` },
        s("rect", { x: x - width / 2, y: y - 14, width, height: 28, rx: 7 }),
        s("text", { x, y: y + 5, "text-anchor": "middle" }, node.shown),
        node.left ? s("text", { class: "rank", x, y: y - 18, "text-anchor": "middle" }, String(node.rank + 1)) : null,
      ),
    );
    return { x, y };
  };
  trees.forEach((tree) => place(tree, true));
  const width = 60 + step * Math.max(1, leaves - 1),
    height = 52 + levels * rise;
  return treePicture("the merges of the word as a tree", width, height, parts);
}
