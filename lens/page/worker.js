// The worker: holds the weights and answers the page: {call, name, options} by {call, answer} or {call, error}.

import {
  attribution,
  emptyLens,
  headMeasures,
  inductionScores,
  neighbours,
  nextLogp,
  principal,
  putRows,
  readLogits,
  readStream,
  streamLengths,
  strongestUnits,
  unitLogits,
} from "./analysis.js";
import { largest, logSumExp } from "./maths.js";
import { Edits, Head, Model, sines } from "./model.js";
import { checkHead, decodeBase64, readTensor, readTensors } from "./payload.js";
import { beamTree, draw, fault, probabilities, random, Text } from "./sampling.js";
import { Tokenizer } from "./tokenizer.js";

const LONGEST_TEXT = 20000; // characters of a prompt
const MOST_WEIGHTS = 24e6; // attention weights that one analysis keeps

export class Lens {
  /** Takes the head of a payload; bytes come by `add`, then `ready` makes the model. */
  constructor(head) {
    this.head = head;
    this.bytes = new Uint8Array(Math.ceil((head?.bytes ?? 0) / 4) * 4);
    this.filled = 0;
    this.texts = new Map(); // texts that grow, by the name that the page gives them
    this.port = null; // the way to a second worker, if there is one
  }

  add({ base64 }) {
    this.filled = decodeBase64(base64, this.bytes, this.filled);
  }

  ready() {
    checkHead(this.head, this.filled);
    this.tokenizer = new Tokenizer(this.head.tokenizer);
    this.model = new Model(this.head.config, readTensors(this.bytes, this.head.tensors));
    const { special, size } = this.tokenizer,
      ids = new Set(special.values());
    this.ordinary = Array.from({ length: Math.min(size, this.model.V) }, (_, id) => id).filter((id) => !ids.has(id));
    this.induction = inductionScores(this.model, this.ordinary);
    this.assistant = this.port ? new Assistant(this.port, this.model) : null;
    const { L, H, K, C, D, V, inner } = this.model,
      { block_size } = this.head.config;
    const most = Math.min(block_size, Math.floor(Math.sqrt(MOST_WEIGHTS / (L * H))));
    return { L, H, K, C, D, V, inner, most, induction: this.induction, end: this.tokenizer.end };
  }

  /** Returns ids, and what is drawn for each; the text begins with the end-of-text token if `begin`. */
  tokenize({ text, begin, special }) {
    if (text.length > LONGEST_TEXT)
      throw new Error(`the prompt has ${text.length} characters, the lens reads ${LONGEST_TEXT}: shorten it`);
    const { tokenizer } = this,
      start = begin && tokenizer.end !== null ? [tokenizer.end] : [];
    const ids = [...start, ...tokenizer.encode(text, special)];
    return {
      ids,
      start: start.length,
      tokens: ids.map((id) => this.token(id)),
      words: [...start.map(() => null), ...tokenizer.words(text, special)],
    };
  }

  token(id) {
    return {
      id,
      shown: this.tokenizer.shown(id),
      bytes: Array.from(this.tokenizer.bytes[id] ?? []),
      special: this.tokenizer.names.has(id),
    };
  }

  /** Returns what is drawn for ids. */
  tokens({ ids }) {
    return ids.map((id) => this.token(id));
  }

  /** Returns the merges of a word as trees, with what is drawn for each node. */
  tree({ word }) {
    const named = (node) => ({
      ...node,
      shown: this.tokenizer.shown(node.id),
      ...(node.left ? { left: named(node.left), right: named(node.right) } : {}),
    });
    return this.tokenizer.tree(word).map(named);
  }

  /** Runs a prompt and keeps all that is computed. Returns what every view needs of it. */
  async analyse({ ids }) {
    const { model, assistant } = this,
      { C, L, V } = model,
      T = ids.length;
    if (!T) throw new Error("the prompt is empty: write something");
    const nexts = Int32Array.from(ids, (_, t) => ids[t + 1] ?? -1),
      lens = emptyLens(L + 1, T),
      given = assistant ? assistant.rows(model, T) : 0,
      elsewhere = [];
    const trace = {
      heard: (stream, point) => {
        const rows = Math.min(T, given - point * T);
        if (rows > 0) elsewhere.push(assistant.read(stream.slice(0, rows * C), nexts.slice(0, rows)));
      },
    };
    trace.logits = model.logits(model.run(ids, model.cache(T), trace), T);
    for (let point = 0; point < L; point++) {
      const from = Math.max(0, Math.min(T, given - point * T)),
        stream = point ? trace.layers[point - 1].stream : trace.embedding;
      if (from < T) putRows(lens, readStream(model, stream.subarray(from * C), nexts.subarray(from)), point * T + from);
    }
    putRows(lens, readLogits(trace.logits, V, nexts), L * T);
    const answer = {
      lengths: streamLengths(model, trace),
      attention: trace.layers.map(({ weights }) => weights.slice()),
      heads: headMeasures(model, trace),
      units: this.loudest(trace),
    };
    for (const [point, rows] of (await Promise.all(elsewhere)).entries()) putRows(lens, rows, point * T);
    this.ids = ids;
    this.trace = trace;
    const shown = new Map(),
      tops = Array.from(lens.top, (id) => shown.get(id) ?? shown.set(id, this.tokenizer.shown(id)).get(id));
    return { ...answer, lens, tops };
  }

  /** Returns the largest |value| of any unit of each MLP, (L, T). */
  loudest({ layers, T }) {
    const { inner } = this.model;
    return layers.map(({ hidden }) =>
      Float32Array.from({ length: T }, (_, t) => {
        let top = 0;
        for (let i = t * inner; i < (t + 1) * inner; i++) top = Math.max(top, Math.abs(hidden[i]));
        return top;
      }),
    );
  }

  /** Returns one of the numbers that the forward pass made: {values, rows, columns}. */
  part({ name, layer }) {
    const { C, D, K, V, inner } = this.model,
      { T } = this.trace;
    const source = layer === null ? this.trace : this.trace.layers[layer];
    const columns = { hidden: inner, k: K * D, v: K * D, logits: V }[name] ?? C;
    return { values: source[name].slice(), rows: T, columns };
  }

  attribution({ position, target }) {
    const parts = attribution(this.model, this.trace, this.ids, position, target);
    const { V } = this.model;
    return { parts, logit: this.trace.logits[position * V + target] };
  }

  units({ layer, position, count }) {
    return strongestUnits(this.model, this.trace, layer, position, count);
  }

  /** Returns one unit: its values over the prompt, the tokens it raises and lowers, and the texts of the index. */
  unit({ layer, unit }) {
    const { inner } = this.model,
      { hidden } = this.trace.layers[layer];
    const { raises, lowers } = unitLogits(this.model, layer, unit, 8);
    return {
      values: Float32Array.from({ length: this.trace.T }, (_, t) => hidden[t * inner + unit]),
      raises: this.tokens({ ids: raises }),
      lowers: this.tokens({ ids: lowers }),
      examples: this.examples(layer, unit),
    };
  }

  /** Reads the index's numbers, once. */
  readIndex() {
    this.index ??= Object.fromEntries(
      Object.entries(this.head.index).map(([name, tensor]) => [name, readTensor(this.bytes, tensor)]),
    );
  }

  examples(layer, unit) {
    const { index } = this.head;
    if (!index) return null;
    this.readIndex();
    const [, inner, best] = index.places.shape,
      width = index.ids.shape[1],
      from = (layer * inner + unit) * best;
    return Array.from({ length: best }, (_, k) => {
      const place = this.index.places[from + k],
        column = place % width,
        row = place - column;
      const first = Math.max(0, column - 12),
        last = Math.min(width, column + 5);
      return {
        value: this.index.values[from + k],
        at: column - first,
        tokens: this.tokens({ ids: Array.from(this.index.ids.subarray(row + first, row + last)) }),
      };
    });
  }

  /** Returns the likeliest tokens after a prompt, with edits and without: ids, and both probabilities of each. */
  compare({ ids, off, patch, other, rules }) {
    check(rules);
    const patches = patch ? [this.patched(patch, other)] : [];
    const plain = this.lastLogits(ids),
      edited = off.length + patches.length > 0;
    const changed = edited ? this.lastLogits(ids, new Edits(off, patches)) : plain;
    const before = probabilities(plain, rules),
      after = probabilities(changed, rules);
    const found = [...new Set([...largest(before, 8), ...largest(after, 8)])];
    found.sort((a, b) => Math.max(before[b], after[b]) - Math.max(before[a], after[a]));
    return {
      divergence: divergence(plain, changed),
      kept: after.reduce((sum, p) => sum + (p > 0), 0),
      rows: found.slice(0, 12).map((id) => ({ ...this.token(id), before: before[id], after: after[id] })),
    };
  }

  /** Returns the logits (V,) after a prompt; without edits those of the analysis, if it began with this prompt. */
  lastLogits(ids, edits = null) {
    const { model } = this,
      { C, V } = model,
      last = ids.length - 1;
    if (!edits && this.begins(ids)) return this.trace.logits.subarray(last * V, (last + 1) * V);
    const final = model.run(ids, model.cache(ids.length), null, edits ?? undefined);
    return model.logits(final.subarray(last * C), 1);
  }

  /** True if the prompt that was analysed begins with these ids. */
  begins(ids) {
    return Boolean(this.trace) && ids.length <= this.ids.length && ids.every((id, place) => id === this.ids[place]);
  }

  /** Returns the patch that puts the numbers of the prompt `other` in place of this one's. */
  patched({ site, layer, position, from }, other) {
    const trace = {},
      { C } = this.model;
    if (from >= other.length) throw new Error(`the other prompt has ${other.length} tokens, there is no token ${from}`);
    this.model.run(other, this.model.cache(other.length), trace);
    const source =
      site === "stream"
        ? layer < 0
          ? trace.embedding
          : trace.layers[layer].stream
        : trace.layers[layer][`${site}Out`];
    return { site, layer, position, vector: source.slice(from * C, (from + 1) * C) };
  }

  /** Returns how switching off each part alone changes log P of `target` after the prompt: names -> nats. */
  sweep({ ids, target }) {
    const { L, H } = this.model,
      logp = (logits) => logits[target] - logSumExp(logits),
      plain = logp(this.lastLogits(ids));
    const names = Array.from({ length: L }, (_, layer) => [
      ...Array.from({ length: H }, (_, head) => `head ${layer} ${head}`),
      `attention ${layer}`,
      `mlp ${layer}`,
    ]).flat();
    return {
      plain,
      changes: Object.fromEntries(names.map((name) => [name, logp(this.lastLogits(ids, new Edits([name]))) - plain])),
    };
  }

  /** Begins a text that grows, under a name. */
  begin({ name, ids }) {
    const known = this.begins(ids) && ids.length === this.ids.length;
    this.texts.set(name, new Text(this.model, ids, known ? this.trace : null));
  }

  /** Returns the distribution of a text's next token under rules: the likeliest ids with and without the rules. */
  next({ name, rules, count }) {
    check(rules);
    const { logits, ids, cache } = this.texts.get(name),
      norm = logSumExp(logits),
      p = probabilities(logits, rules);
    return {
      used: cache.used,
      length: ids.length,
      kept: p.reduce((sum, value) => sum + (value > 0), 0),
      rows: largest(logits, count).map((id) => ({ ...this.token(id), raw: Math.exp(logits[id] - norm), p: p[id] })),
    };
  }

  append({ name, id }) {
    this.texts.get(name).append(id);
  }

  undo({ name }) {
    const text = this.texts.get(name);
    if (text.ids.length > 1) text.undo();
  }

  /** Draws up to `count` tokens, tells of each, and stops at a stop id or when the page says so. */
  async generate({ name, rules, count, seed, stop }, tell, stopped) {
    check(rules);
    const text = this.texts.get(name),
      next = random(seed);
    let rest = performance.now();
    for (let done = 0; done < count && !stopped(); done++) {
      const p = probabilities(text.logits, rules),
        id = draw(p, next());
      tell({ ...this.token(id), p: p[id], end: stop.includes(id) });
      if (stop.includes(id)) return;
      text.append(id);
      if (performance.now() - rest > 30) {
        // lets a message that stops it in
        await new Promise((go) => setTimeout(go));
        rest = performance.now();
      }
    }
  }

  beam({ ids, beams, steps, stop }) {
    return beamTree(this.model, ids, { beams, steps, stop }).map((node) => ({
      ...node,
      shown: this.tokenizer.shown(node.id),
    }));
  }

  /** Returns log P of each next token of a prompt at one kept step, the likeliest last tokens, and attention (L, H T T). */
  film({ ids, frame }) {
    const model = new Model(this.head.config, readTensors(this.bytes, this.head.film[frame].tensors)),
      trace = {},
      { V } = model;
    const logits = model.logits(model.run(ids, model.cache(ids.length), trace), ids.length),
      from = (ids.length - 1) * V;
    const norm = logSumExp(logits, from, from + V);
    return {
      logp: nextLogp(logits, ids, V),
      attention: trace.layers.map(({ weights }) => weights),
      rows: largest(logits, 8, from, from + V).map((id) => ({
        ...this.token(id),
        p: Math.exp(logits[from + id] - norm),
      })),
    };
  }

  /** Returns the map of the embeddings: ids, x and y of each, the shares of the variance, what is drawn for each. */
  map() {
    const { C } = this.model,
      table = this.model.get("wte.weight");
    const words = this.words(),
      ids = words.length > 50 ? words : this.ordinary;
    const { mean, directions, shares } = principal(table, C, ids.slice(0, 4000));
    const along = (direction) =>
      Float32Array.from(ids, (id) => {
        let sum = 0;
        for (let i = 0; i < C; i++) sum += (table[id * C + i] - mean[i]) * direction[i];
        return sum;
      });
    this.mapped = ids;
    return {
      ids,
      x: along(directions[0]),
      y: along(directions[1]),
      shares,
      tokens: this.tokens({ ids }).map(({ shown }) => shown),
    };
  }

  /** Returns the ids of words: letters after a space. Beginnings of longer words are among them, unless there is an
   * index: then only those count that end a word somewhere in its texts. */
  words() {
    const texts = this.ordinary.map((id) => [id, this.tokenizer.decode([id])]),
      words = texts.filter(([, text]) => /^ \p{L}{2,}$/u.test(text)).map(([id]) => id);
    if (!this.head.index) return words;
    this.readIndex();
    const goesOn = new Set(texts.filter(([, text]) => /^[\p{L}']/u.test(text)).map(([id]) => id)),
      { ids } = this.index,
      width = this.head.index.ids.shape[1],
      whole = new Set(ids.filter((_, place) => (place + 1) % width && !goesOn.has(ids[place + 1])));
    return words.filter((id) => whole.has(id));
  }

  near({ id, count }) {
    const { model } = this;
    return neighbours(model.get("wte.weight"), model.C, id, this.mapped ?? this.ordinary, count).map((found) => ({
      ...this.token(found.id),
      cosine: found.cosine,
    }));
  }

  /** Returns the table of positions: learned, or what rotary and sinusoidal positions compute. */
  positions() {
    const { config, C, D, angles } = this.model,
      rows = config.block_size;
    if (config.positions === "learned")
      return { kind: "learned", values: this.model.get("wpe.weight").slice(), rows, columns: C };
    if (config.positions === "rotary") return { kind: "rotary", values: angles.slice(), rows, columns: D };
    if (config.positions === "none") return { kind: "none" };
    const values = new Float32Array(rows * C);
    for (let p = 0; p < rows; p++) values.set(sines(C, p), p * C);
    return { kind: "sinusoidal", values, rows, columns: C };
  }

  /** Returns the ids of a conversation before the next answer; marks in a message are plain text. */
  conversation({ turns }) {
    const { start, user_to_assistant, assistant_to_user, answer } = this.head.chat,
      { tokenizer } = this;
    const texts = turns.flatMap((turn, place) => [
      { text: turn },
      { marks: place === turns.length - 1 ? answer : place % 2 ? assistant_to_user : user_to_assistant },
    ]);
    const ids = [];
    let plain = "";
    const flush = () => {
      ids.push(...tokenizer.encode(plain));
      plain = "";
    };
    for (const { text, marks } of [{ marks: start }, ...texts]) {
      if (text !== undefined) {
        plain += text;
        continue;
      }
      tokenizer.splitSpecial(marks, true).forEach((part, place) => {
        if (place % 2) {
          flush();
          ids.push(tokenizer.special.get(part));
        } else plain += part;
      });
    }
    flush();
    return ids;
  }
}

function check(rules) {
  const wrong = fault(rules);
  if (wrong) throw new Error(wrong);
}

/** Returns Σ p log(p / q) of two rows of logits, in nats. */
function divergence(plain, changed) {
  const a = logSumExp(plain),
    b = logSumExp(changed);
  return plain.reduce((sum, value, i) => sum + Math.exp(value - a) * (value - a - changed[i] + b), 0);
}

/** A second worker of the same script, which reads a part of the logit lens while this one computes: see Reader. */
class Assistant {
  /** Gives it what it needs of the model; `port` is the way to it. */
  constructor(port, { config, head, finalNorm }) {
    this.ready = false;
    this.waiting = []; // answers come in the order of the questions
    this.port = port;
    port.onmessage = ({ data: { answer, error } }) => {
      const { resolve, reject } = this.waiting.shift();
      if (error === undefined) resolve(answer);
      else reject(new Error(error));
    };
    // slices, as a vector is a view of all bytes, which would be sent with it
    const [weight, bias] = [finalNorm?.weight?.slice(), finalNorm?.bias?.slice()],
      weights = { "lm_head.weight": head, "ln_f.weight": weight, "ln_f.bias": bias };
    this.ask("assist", { config, weights }).then(() => (this.ready = true));
  }

  ask(name, options) {
    this.port.postMessage({ call: 0, name, options });
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }

  read(stream, nexts) {
    return this.ask("read", { stream, nexts });
  }

  /** Returns of how many rows, from the first of the embedding on, the lens is left to it: half of all products, or
   * all rows before the last block's. */
  rows({ L, C, V, inner, blocks: [{ c_attn, c_gate }] }, T) {
    if (!this.ready) return 0;
    const layer = c_attn.weight.length + C * C + (c_gate ? 3 : 2) * inner * C;
    return Math.min(L * T, Math.round((T * (L * layer + (L + 1) * V * C)) / (2 * V * C)));
  }
}

/** What the assistant is: it has the final norm and the head, and answers with the lens of rows of the stream. */
class Reader {
  constructor({ config, weights }) {
    this.head = new Head(config, new Map(Object.entries(weights)));
  }

  read({ stream, nexts }) {
    return readStream(this.head, stream, nexts);
  }
}

/** Answers messages with a Lens or a Reader, one after another; {stop: call} ends a generation. {serve: port} makes
 * this worker the assistant of the one at the other end. */
export function serve(scope) {
  let lens = null;
  const stops = new Set();
  scope.onmessage = async ({ data }) => {
    if (data.stop !== undefined) {
      stops.add(data.stop);
      return;
    }
    if (data.serve) return serve(data.serve);
    const { call, name, options, port } = data;
    try {
      let answer = null;
      if (name === "open") lens = Object.assign(new Lens(options.head), { port });
      else if (name === "assist") lens = new Reader(options);
      else if (name === "generate") {
        await lens.generate(
          options,
          (part) => scope.postMessage({ call, part }),
          () => stops.has(call),
        );
        stops.delete(call);
      } else answer = await lens[name](options);
      scope.postMessage({ call, answer });
    } catch (error) {
      scope.postMessage({ call, error: error.message });
    }
  };
}

if (typeof WorkerGlobalScope !== "undefined" && self instanceof WorkerGlobalScope) serve(self);
