// What the views show, made of a traced forward pass: the logit lens, attribution, kinds of heads, units, a map of words.

import { dot, largest, length, linear, logSumExp, moments, norm } from "./maths.js";
import { random } from "./sampling.js";

export const TOP = 5; // tokens that the lens names at each place

/** Returns an empty logit lens: for the embedding and each block's stream, what the head says after the final norm.
 * top, p (points, T, TOP): likeliest ids, their probabilities; rank, logp (points, T): of the next token of the text. */
export function emptyLens(points, T) {
  return { points, T, ...emptyRows(points * T) };
}

const emptyRows = (n) => ({
  top: new Int32Array(n * TOP),
  p: new Float32Array(n * TOP),
  rank: new Int32Array(n).fill(-1),
  logp: new Float32Array(n),
  entropy: new Float32Array(n),
});

/** Returns the lens of rows of the stream, (n, C); `nexts` (n,) are the ids that follow in the text, -1 for none. */
export function readStream(head, stream, nexts) {
  return readLogits(head.logits(head.final(stream, nexts.length), nexts.length), head.V, nexts);
}

/** Returns the lens of rows of logits, (n, V). */
export function readLogits(logits, V, nexts) {
  const found = emptyRows(nexts.length);
  nexts.forEach((next, place) => readRow(found, logits, place * V, V, place, next));
  return found;
}

/** Writes the lens of some rows into the whole lens, from row `at` on. */
export function putRows(lens, rows, at) {
  for (const [name, values] of Object.entries(rows)) lens[name].set(values, at * (values.length / rows.rank.length));
}

function readRow(found, logits, from, V, place, next) {
  const likeliest = largest(logits, TOP, from, from + V),
    top = logits[from + likeliest[0]];
  const wanted = next < 0 ? Infinity : logits[from + next];
  let sum = 0,
    weighted = 0,
    rank = 1;
  for (let i = from; i < from + V; i++) {
    const logit = logits[i],
      e = Math.exp(logit - top);
    sum += e;
    weighted += e * (logit - top);
    if (logit > wanted) rank++;
  }
  const norm = top + Math.log(sum);
  found.entropy[place] = Math.log(sum) - weighted / sum;
  likeliest.forEach((id, k) => {
    found.top[place * TOP + k] = id;
    found.p[place * TOP + k] = Math.exp(logits[from + id] - norm);
  });
  if (next < 0) return;
  found.rank[place] = rank;
  found.logp[place] = wanted - norm;
}

/** Returns parts {label, layer, head, value} whose values sum to the logit of `target` at `position`, before a softcap.
 * Every norm is taken with the mean and deviation that it had: then it is linear, and parts pass it one by one. */
export function attribution(model, trace, ids, position, target) {
  const { C, D, H } = model,
    parts = embeddingParts(model, trace, ids, position);
  const row = (x) => x.subarray(position * C, (position + 1) * C);
  const first = row(trace.embedding).slice();
  trace.layers.forEach((kept, layer) => {
    const block = model.blocks[layer];
    if (model.config.residual_scalars) rescale(model, parts, first, layer);
    const rest = row(kept.attentionOut).slice();
    for (let head = 0; head < H; head++) {
      const vector = headOutput(model, block, row(kept.heads), head);
      for (let i = 0; i < C; i++) rest[i] -= vector[i];
      parts.push({ label: `head ${layer}.${head}`, kind: "head", layer, head, vector });
    }
    if (block.attn_proj.bias) parts.push({ label: `bias ${layer}`, kind: "bias", layer, vector: rest });
    if (model.post) throughNorm(parts, row(kept.attentionSum), block.ln_1, `norm ${layer}.1`);
    parts.push({ label: `MLP ${layer}`, kind: "mlp", layer, vector: row(kept.mlpOut).slice() });
    if (model.post) throughNorm(parts, row(kept.mlpSum), block.ln_2, `norm ${layer}.2`);
  });
  if (model.finalNorm) throughNorm(parts, row(trace.layers.at(-1).stream), model.finalNorm, "norm bias");
  return parts.map(({ vector, ...part }) => ({
    ...part,
    value: dot(vector, 0, model.head, target * C, C) / model.ratio,
  }));
}

function embeddingParts(model, trace, ids, position) {
  const { C, config } = model,
    whole = trace.embedding.slice(position * C, (position + 1) * C);
  if (config.positions !== "learned") return [{ label: "embedding", kind: "embedding", vector: whole }];
  const token = model.get("wte.weight").slice(ids[position] * C, (ids[position] + 1) * C);
  return [
    { label: "token", kind: "embedding", vector: token },
    { label: "position", kind: "embedding", vector: whole.map((value, i) => value - token[i]) },
  ];
}

function rescale(model, parts, embedding, layer) {
  const a = model.get("stream_scale")[layer],
    b = model.get("embedding_scale")[layer];
  for (const part of parts) part.vector = part.vector.map((value) => a * value);
  parts.push({
    label: `embedding again ${layer}`,
    kind: "embedding",
    layer,
    vector: embedding.map((value) => b * value),
  });
}

function headOutput({ C, D }, block, y, head) {
  const out = new Float32Array(C),
    { weight } = block.attn_proj;
  for (let i = 0; i < C; i++) out[i] = dot(y, head * D, weight, i * C + head * D, D);
  return out;
}

function throughNorm(parts, row, { weight, bias, eps, rms }, label) {
  const width = row.length,
    { factor } = moments(row, 0, width, eps, rms);
  for (const part of parts) {
    const mean = rms ? 0 : part.vector.reduce((a, b) => a + b, 0) / width;
    part.vector = part.vector.map((value, i) => (value - mean) * factor * weight[i]);
  }
  if (bias) parts.push({ label, kind: "bias", vector: bias });
}

/** Returns for each head {previous, first, self, entropy, distances}: mean weights over the queries after the second. */
export function headMeasures(model, trace) {
  return trace.layers.map(({ weights }) =>
    Array.from({ length: model.H }, (_, head) => measure(weights, head, trace.T)),
  );
}

function measure(weights, head, T) {
  const distances = new Float64Array(T),
    seen = new Float64Array(T);
  let previous = 0,
    first = 0,
    entropy = 0,
    count = 0;
  for (let t = 0; t < T; t++) {
    const at = (head * T + t) * T;
    for (let j = 0; j <= t; j++) {
      const p = weights[at + j];
      distances[t - j] += p;
      seen[t - j]++;
      if (p > 0) entropy -= p * Math.log(p);
    }
    if (t < 2) continue;
    count++;
    previous += weights[at + t - 1];
    first += weights[at];
  }
  for (let d = 0; d < T; d++) distances[d] /= seen[d];
  const n = Math.max(1, count);
  return {
    previous: previous / n,
    first: first / n,
    self: T ? distances[0] : 0,
    entropy: entropy / Math.max(1, T),
    distances: Float32Array.from(distances),
  };
}

/** Returns for each layer and head how much it reads, at the second of two equal runs of random tokens, the token that
 * followed the same token in the first run: the induction score of Olsson et al. 2022. */
export function inductionScores(model, ordinary) {
  const { block_size: block, window } = model.config,
    n = Math.min(24, Math.floor(block / 2), (window ?? Infinity) - 1);
  if (n < 4) return model.blocks.map(() => new Array(model.H).fill(0));
  const next = random(7),
    run = Array.from({ length: n }, () => ordinary[Math.floor(next() * ordinary.length)]);
  const trace = {},
    T = 2 * n;
  model.run([...run, ...run], model.cache(T), trace);
  return trace.layers.map(({ weights }) =>
    Array.from({ length: model.H }, (_, head) => {
      let sum = 0;
      for (let t = n; t < T; t++) sum += weights[(head * T + t) * T + t - n + 1];
      return sum / n;
    }),
  );
}

/** Returns the `count` units of an MLP that write most at a position: {unit, value, size}, size = |value| · |its column|. */
export function strongestUnits(model, trace, layer, position, count) {
  const { inner } = model,
    columns = columnLengths(model, layer);
  const values = trace.layers[layer].hidden.subarray(position * inner, (position + 1) * inner);
  const sizes = Float32Array.from(values, (value, unit) => Math.abs(value) * columns[unit]);
  return largest(sizes, count).map((unit) => ({ unit, value: values[unit], size: sizes[unit] }));
}

function columnLengths(model, layer) {
  const block = model.blocks[layer],
    { C, inner } = model,
    { weight } = block.mlp_proj;
  if (block.columns) return block.columns;
  const squares = new Float32Array(inner);
  for (let row = 0, i = 0; row < C; row++)
    for (let unit = 0; unit < inner; unit++, i++) squares[unit] += weight[i] ** 2;
  return (block.columns = squares.map(Math.sqrt));
}

/** Returns the ids whose logits a unit raises most, and lowers most, as far as its column goes straight to the head. */
export function unitLogits(model, layer, unit, count) {
  const { C, V, inner } = model,
    { weight } = model.blocks[layer].mlp_proj;
  const scale = model.finalNorm?.weight;
  const column = Float32Array.from({ length: C }, (_, i) => weight[i * inner + unit] * (scale ? scale[i] : 1));
  const logits = linear(new Float32Array(V), column, 1, model.head, V, C);
  return {
    raises: largest(logits, count),
    lowers: largest(
      logits.map((value) => -value),
      count,
    ),
  };
}

/** Returns the lengths of the stream's rows after the embedding and after each sublayer: (1 + 2 L) arrays of T. */
export function streamLengths(model, trace) {
  const { C } = model,
    rows = (x) => Float32Array.from({ length: trace.T }, (_, t) => length(x, t * C, C));
  return [trace.embedding, ...trace.layers.flatMap(({ middle, stream }) => [middle, stream])].map(rows);
}

/** Returns the two directions (2, C) in which the rows of `ids` in a table (V, C) vary most, their mean (C,) and shares. */
export function principal(table, width, ids) {
  const mean = new Float64Array(width),
    covariance = new Float64Array(width * width);
  for (const id of ids) for (let i = 0; i < width; i++) mean[i] += table[id * width + i] / ids.length;
  const row = new Float64Array(width);
  for (const id of ids) {
    for (let i = 0; i < width; i++) row[i] = table[id * width + i] - mean[i];
    for (let i = 0; i < width; i++) for (let j = i; j < width; j++) covariance[i * width + j] += row[i] * row[j];
  }
  for (let i = 0; i < width; i++) for (let j = 0; j < i; j++) covariance[i * width + j] = covariance[j * width + i];
  let total = 0;
  for (let i = 0; i < width; i++) total += covariance[i * width + i];
  const directions = [],
    shares = [];
  for (let k = 0; k < 2; k++) {
    const { vector, value } = powerIteration(covariance, width, directions);
    directions.push(vector);
    shares.push(value / total);
  }
  return { mean, directions, shares };
}

function powerIteration(matrix, width, others) {
  const next = random(1);
  let vector = Float64Array.from({ length: width }, () => next() - 0.5),
    value = 0;
  for (let round = 0; round < 200; round++) {
    for (const other of others) {
      const along = dot(vector, 0, other, 0, width);
      vector = vector.map((x, i) => x - along * other[i]);
    }
    const product = Float64Array.from({ length: width }, (_, i) => dot(matrix, i * width, vector, 0, width));
    value = length(product, 0, width);
    if (!(value > 0)) break;
    const moved = product.reduce((sum, x, i) => sum + Math.abs(x / value - vector[i]), 0);
    vector = product.map((x) => x / value);
    if (moved < 1e-9) break;
  }
  return { vector, value };
}

/** Returns the `count` ids whose rows of a table (V, C) have the largest cosine with that of `id`: [{id, cosine}]. */
export function neighbours(table, width, id, ids, count) {
  const own = length(table, id * width, width) || 1;
  const cosines = Float32Array.from(ids, (other) =>
    other === id
      ? -2
      : dot(table, id * width, table, other * width, width) / own / (length(table, other * width, width) || 1),
  );
  return largest(cosines, count).map((place) => ({ id: ids[place], cosine: cosines[place] }));
}

/** Returns log-probabilities of the ids after the first, for logits (T, V) of all but the last. */
export function nextLogp(logits, ids, V) {
  return Float32Array.from(
    { length: Math.max(0, ids.length - 1) },
    (_, t) => logits[t * V + ids[t + 1]] - logSumExp(logits, t * V, (t + 1) * V),
  );
}
