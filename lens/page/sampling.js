// From logits to a token: the rules of model/generate.py, a text that grows token by token, and beam search as a tree.

import { largest, logSumExp, softmax } from "./maths.js";

/** Returns what is wrong with rules {temperature, top_k, top_p, min_p} as a sentence, or "" if nothing is. */
export function fault({ temperature, top_k, top_p, min_p }) {
  if (!(temperature === 0 || (temperature >= 1e-6 && temperature < Infinity)))
    return "temperature must be 0 (greedy) or more";
  if (top_k !== null && !(Number.isInteger(top_k) && top_k >= 1)) return "top-k must be a whole number of at least 1";
  if (top_p !== null && !(top_p > 0 && top_p <= 1)) return "top-p must be above 0 and at most 1";
  if (min_p !== null && !(min_p > 0 && min_p <= 1)) return "min-p must be above 0 and at most 1";
  return "";
}

/** Returns the probabilities (V,) from which a token is drawn; greedy rules give 1 to the likeliest id. */
export function probabilities(logits, { temperature, top_k, top_p, min_p }) {
  if (temperature === 0 || top_k === 1) {
    const p = new Float32Array(logits.length);
    p[largest(logits, 1)[0]] = 1;
    return p;
  }
  const p = Float64Array.from(logits, (value) => value / temperature);
  if (top_k !== null && top_k < p.length) keepAtLeast(p, p.slice().sort()[p.length - top_k]);
  if (top_p !== null && top_p < 1) keepTopP(p, top_p);
  if (min_p !== null) keepAtLeast(p, p.reduce((a, b) => Math.max(a, b), -Infinity) + Math.log(min_p));
  return softmax(p);
}

function keepAtLeast(x, smallest) {
  for (let i = 0; i < x.length; i++) if (x[i] < smallest) x[i] = -Infinity;
}

function keepTopP(x, share) {
  const ordered = x.slice().sort(),
    norm = logSumExp(x);
  let count = 0;
  for (let before = 0; count < x.length && before < share; count++)
    before += Math.exp(ordered[x.length - 1 - count] - norm);
  const smallest = ordered[x.length - count];
  let ties = 0; // equals of the smallest that stay: the first ones
  for (let i = 0; i < count; i++) ties += ordered[x.length - 1 - i] === smallest;
  for (let i = 0; i < x.length; i++) if (x[i] < smallest || (x[i] === smallest && ties-- <= 0)) x[i] = -Infinity;
}

/** Returns the first id whose running sum of probabilities passes `uniform` in [0, 1). */
export function draw(p, uniform) {
  let total = 0,
    running = 0,
    last = 0;
  for (let i = 0; i < p.length; i++) total += p[i];
  for (let i = 0; i < p.length; i++) {
    if (p[i] > 0) last = i;
    if ((running += p[i]) > uniform * total) return i;
  }
  return last;
}

/** Returns a generator of numbers in [0, 1) from a seed (mulberry32). */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Returns the first of `tokens` tokens that the model still sees: whenever the context is full, the older half is dropped. */
export function contextStart(tokens, block) {
  const half = Math.max(1, Math.floor(block / 2));
  return Math.max(0, Math.ceil((tokens - block) / half) * half);
}

/** A text that grows: ids, the cache of what the model has read, and the logits (V,) of the next token. */
export class Text {
  /** Begins with ids; with a `trace` of just these, nothing is computed. */
  constructor(model, ids, trace = null) {
    if (!ids.length) throw new Error("the prompt is empty, and the tokenizer has no end-of-text token to start from");
    Object.assign(this, { model, ids: [...ids], start: -1, cache: model.cache() });
    if (!trace) {
      this.read();
      return;
    }
    trace.layers.forEach(({ k, v }, layer) => {
      this.cache.layers[layer].k.set(k);
      this.cache.layers[layer].v.set(v);
    });
    this.start = 0;
    this.cache.used = ids.length;
    this.logits = trace.logits.slice((ids.length - 1) * model.V);
  }

  /** Reads what the cache lacks; all that the model still sees, if the context moved. */
  read() {
    const { model, cache } = this,
      start = contextStart(this.ids.length, model.config.block_size);
    if (start !== this.start) cache.used = 0;
    this.start = start;
    const fresh = this.ids.slice(start + cache.used),
      final = model.run(fresh, cache);
    this.logits = model.logits(final.subarray((fresh.length - 1) * model.C), 1);
  }

  append(id) {
    this.ids.push(id);
    this.read();
  }

  /** Takes back the last token. */
  undo() {
    this.ids.pop();
    this.cache.used = Math.max(0, Math.min(this.cache.used, this.ids.length - this.start) - 1);
    this.read();
  }
}

/** Returns beam search as a tree: nodes {id, parent, logp, depth, kept, ended} after the prompt, the best leaf marked. */
export function beamTree(model, ids, { beams, steps, stop }) {
  const room = Math.min(steps, model.config.block_size - ids.length);
  if (room < 1)
    throw new Error(
      `${ids.length} tokens leave no room in the context of ${model.config.block_size}: shorten the prompt`,
    );
  const root = new Text(model, ids),
    nodes = [];
  let live = [{ node: -1, logp: 0, text: root }],
    finished = [];
  for (let depth = 0; depth < room && live.length; depth++) {
    const grown = extensions(live, beams - finished.length + 2);
    const places = new Map();
    live = [];
    grown.forEach(({ from, id, logp }, rank) => {
      const kept = rank < beams - finished.length,
        ended = stop.includes(id);
      nodes.push({ id, parent: from.node, logp, depth, kept, ended, best: false });
      if (kept) places.set(nodes.length - 1, { from, id, logp, ended });
    });
    for (const [node, { from, id, logp, ended }] of places)
      if (ended) finished.push({ node, logp: logp / (depth + 1) });
      else live.push({ node, logp, text: extended(from.text, id) });
  }
  const ends = [...finished, ...live.map(({ node, logp }) => ({ node, logp: logp / (nodes[node].depth + 1) }))];
  let at = ends.reduce((a, b) => (b.logp > a.logp ? b : a), { node: -1, logp: -Infinity }).node;
  for (; at >= 0; at = nodes[at].parent) nodes[at].best = true;
  return nodes;
}

/** Returns the `count` likeliest extensions of the beams. */
function extensions(live, count) {
  const found = live.flatMap((from) => {
    const norm = logSumExp(from.text.logits);
    return largest(from.text.logits, count).map((id) => ({ from, id, logp: from.logp + from.text.logits[id] - norm }));
  });
  return found.sort((a, b) => b.logp - a.logp).slice(0, count);
}

function extended(text, id) {
  const copy = Object.assign(Object.create(Text.prototype), text, { ids: [...text.ids] });
  copy.cache = { ...text.cache, layers: text.cache.layers.map(({ k, v }) => ({ k: k.slice(), v: v.slice() })) };
  copy.append(id);
  return copy;
}
