// Products, norms and activations on Float32Arrays; sums are float64. Shapes: n rows, each of a width, row after row.

/** Writes out (n, rows) = x (n, width) · wᵀ + bias, for w (rows, width) as torch keeps it; bias may be undefined. */
export function linear(out, x, n, w, rows, width, bias) {
  const paired = n - (n % 2),
    fours = rows - (rows % 4);
  for (let row = 0; paired && row < fours; row += 4) {
    packRows(w, row, width);
    for (let token = 0; token < paired; token += 2) twoTokens(out, x, token, row, rows, width);
  }
  for (let row = fours; row < rows; row++)
    for (let token = 0; token < paired; token++) out[token * rows + row] = dot(x, token * width, w, row * width, width);
  if (paired < n) oneToken(out, x, paired, w, rows, width);
  if (bias) for (let t = 0, i = 0; t < n; t++) for (let row = 0; row < rows; row++, i++) out[i] += bias[row];
  return out;
}

let packed = new Float64Array(4096); // four rows side by side in float64, so that each number is converted once

function packRows(w, row, width) {
  if (packed.length < 4 * width) packed = new Float64Array(4 * width);
  for (let i = 0, from = row * width, to = 0; i < width; i++, from++, to += 4) {
    packed[to] = w[from];
    packed[to + 1] = w[from + width];
    packed[to + 2] = w[from + 2 * width];
    packed[to + 3] = w[from + 3 * width];
  }
}

/** Multiplies two tokens by the packed rows: eight products of six numbers. */
function twoTokens(out, x, token, row, rows, width) {
  const p = packed,
    x0 = token * width,
    x1 = x0 + width,
    first = token * rows + row,
    second = first + rows;
  let a = 0,
    b = 0,
    c = 0,
    d = 0,
    e = 0,
    f = 0,
    g = 0,
    h = 0;
  for (let i = 0, z = 0; i < width; i++, z += 4) {
    const u = x[x0 + i],
      v = x[x1 + i],
      q = p[z],
      r = p[z + 1],
      s = p[z + 2],
      t = p[z + 3];
    a += u * q;
    b += u * r;
    c += u * s;
    d += u * t;
    e += v * q;
    f += v * r;
    g += v * s;
    h += v * t;
  }
  out[first] = a;
  out[first + 1] = b;
  out[first + 2] = c;
  out[first + 3] = d;
  out[second] = e;
  out[second + 1] = f;
  out[second + 2] = g;
  out[second + 3] = h;
}

/** Multiplies one token by all rows, eight at a time. */
function oneToken(out, x, token, w, rows, width) {
  const x0 = token * width,
    to = token * rows;
  let row = 0;
  for (; row + 8 <= rows; row += 8) {
    const w0 = row * width,
      w1 = w0 + width,
      w2 = w1 + width,
      w3 = w2 + width;
    const w4 = w3 + width,
      w5 = w4 + width,
      w6 = w5 + width,
      w7 = w6 + width;
    let a = 0,
      b = 0,
      c = 0,
      d = 0,
      e = 0,
      f = 0,
      g = 0,
      h = 0;
    for (let i = 0; i < width; i++) {
      const u = x[x0 + i];
      a += u * w[w0 + i];
      b += u * w[w1 + i];
      c += u * w[w2 + i];
      d += u * w[w3 + i];
      e += u * w[w4 + i];
      f += u * w[w5 + i];
      g += u * w[w6 + i];
      h += u * w[w7 + i];
    }
    const at = to + row;
    out[at] = a;
    out[at + 1] = b;
    out[at + 2] = c;
    out[at + 3] = d;
    out[at + 4] = e;
    out[at + 5] = f;
    out[at + 6] = g;
    out[at + 7] = h;
  }
  for (; row < rows; row++) out[to + row] = dot(x, x0, w, row * width, width);
}

/** Returns Σ a[at + i] b[from + i] for i below `width`. */
export function dot(a, at, b, from, width) {
  let sum = 0;
  for (let i = 0; i < width; i++) sum += a[at + i] * b[from + i];
  return sum;
}

/** Returns {mean, factor} of a row, so that its norm is (x - mean) · factor · weight + bias; RMSNorm has mean 0. */
export function moments(x, at, width, eps, rms) {
  let sum = 0,
    squares = 0;
  if (!rms) for (let i = 0; i < width; i++) sum += x[at + i];
  const mean = sum / width;
  for (let i = 0; i < width; i++) squares += (x[at + i] - mean) ** 2;
  return { mean, factor: 1 / Math.sqrt(squares / width + eps) };
}

/** Returns the norm of each row of x (n, width). */
export function norm(x, n, width, { weight, bias, eps, rms }) {
  const out = new Float32Array(n * width);
  for (let at = 0; at < n * width; at += width) {
    const { mean, factor } = moments(x, at, width, eps, rms);
    for (let i = 0; i < width; i++) out[at + i] = (x[at + i] - mean) * factor * weight[i] + (bias ? bias[i] : 0);
  }
  return out;
}

const GELU = 2 * Math.sqrt(2 / Math.PI);

/** The activations, in place. tanh(z) = 2 σ(2z) - 1, so GPT-2's GELU is x · σ(2z). */
export const ACTIVATIONS = {
  gelu(x) {
    for (let i = 0; i < x.length; i++) {
      const v = x[i];
      x[i] = v / (1 + Math.exp(-GELU * (v + 0.044715 * v * v * v)));
    }
  },
  silu(x) {
    for (let i = 0; i < x.length; i++) x[i] = x[i] / (1 + Math.exp(-x[i]));
  },
  relu2(x) {
    for (let i = 0; i < x.length; i++) x[i] = x[i] > 0 ? x[i] * x[i] : 0;
  },
};

/** Turns x[from … to) into its softmax; -Infinity becomes 0. */
export function softmax(x, from = 0, to = x.length) {
  let top = -Infinity,
    sum = 0;
  for (let i = from; i < to; i++) if (x[i] > top) top = x[i];
  for (let i = from; i < to; i++) sum += x[i] = Math.exp(x[i] - top);
  for (let i = from; i < to; i++) x[i] /= sum;
  return x;
}

/** Returns the log of Σ exp over x[from … to). */
export function logSumExp(x, from = 0, to = x.length) {
  let top = -Infinity,
    sum = 0;
  for (let i = from; i < to; i++) if (x[i] > top) top = x[i];
  for (let i = from; i < to; i++) sum += Math.exp(x[i] - top);
  return top + Math.log(sum);
}

/** Returns the places of the `count` largest of x[from … to), the largest first; of equals the first. */
export function largest(x, count, from = 0, to = x.length) {
  const places = [],
    values = [];
  for (let i = from; i < to; i++) {
    const value = x[i];
    if (values.length === count && value <= values[count - 1]) continue;
    let at = values.length;
    while (at && values[at - 1] < value) at--;
    values.splice(at, 0, value);
    places.splice(at, 0, i - from);
    if (values.length > count) {
      values.pop();
      places.pop();
    }
  }
  return places;
}

/** Returns the Euclidean length of x[at … at + width). */
export const length = (x, at, width) => Math.sqrt(dot(x, at, x, at, width));
