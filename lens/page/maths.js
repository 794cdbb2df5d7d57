// Products, norms and activations on Float32Arrays; sums are float64. Shapes: n rows, each of a width, row after row.

/** Writes out (n, rows) = x (n, width) · wᵀ + bias, for w (rows, width) as torch keeps it; bias may be undefined. */
export function linear(out, x, n, w, rows, width, bias) {
  let token = 0;
  for (; token + 2 <= n; token += 2) pair(out, x, token, w, rows, width);
  if (token < n) single(out, x, token, w, rows, width);
  if (bias) for (let t = 0, i = 0; t < n; t++) for (let row = 0; row < rows; row++, i++) out[i] += bias[row];
  return out;
}

// Two tokens and four rows at a time: six numbers are read for eight products.
function pair(out, x, token, w, rows, width) {
  const x0 = x.subarray(token * width, (token + 1) * width), x1 = x.subarray((token + 1) * width, (token + 2) * width);
  const first = token * rows, second = first + rows;
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    const w0 = row * width, w1 = w0 + width, w2 = w1 + width, w3 = w2 + width;
    let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (let i = 0; i < width; i++) {
      const u = x0[i], v = x1[i], p = w[w0 + i], q = w[w1 + i], r = w[w2 + i], s = w[w3 + i];
      a += u * p; b += u * q; c += u * r; d += u * s;
      e += v * p; f += v * q; g += v * r; h += v * s;
    }
    out[first + row] = a; out[first + row + 1] = b; out[first + row + 2] = c; out[first + row + 3] = d;
    out[second + row] = e; out[second + row + 1] = f; out[second + row + 2] = g; out[second + row + 3] = h;
  }
  for (; row < rows; row++) {
    out[first + row] = dot(x0, 0, w, row * width, width);
    out[second + row] = dot(x1, 0, w, row * width, width);
  }
}

function single(out, x, token, w, rows, width) {
  const first = token * rows, x0 = x.subarray(token * width, (token + 1) * width);
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    const w0 = row * width, w1 = w0 + width, w2 = w1 + width, w3 = w2 + width;
    let a = 0, b = 0, c = 0, d = 0;
    for (let i = 0; i < width; i++) {
      const u = x0[i];
      a += u * w[w0 + i]; b += u * w[w1 + i]; c += u * w[w2 + i]; d += u * w[w3 + i];
    }
    out[first + row] = a; out[first + row + 1] = b; out[first + row + 2] = c; out[first + row + 3] = d;
  }
  for (; row < rows; row++) out[first + row] = dot(x0, 0, w, row * width, width);
}

/** Returns Σ a[at + i] b[from + i] for i below `width`. */
export function dot(a, at, b, from, width) {
  let sum = 0;
  for (let i = 0; i < width; i++) sum += a[at + i] * b[from + i];
  return sum;
}

/** Returns {mean, factor} of a row, so that its norm is (x - mean) · factor · weight + bias; RMSNorm has mean 0. */
export function moments(x, at, width, eps, rms) {
  let sum = 0, squares = 0;
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
    for (let i = 0; i < x.length; i++) { const v = x[i]; x[i] = v / (1 + Math.exp(-GELU * (v + 0.044715 * v * v * v))); }
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
  let top = -Infinity, sum = 0;
  for (let i = from; i < to; i++) if (x[i] > top) top = x[i];
  for (let i = from; i < to; i++) sum += x[i] = Math.exp(x[i] - top);
  for (let i = from; i < to; i++) x[i] /= sum;
  return x;
}

/** Returns the log of Σ exp over x[from … to). */
export function logSumExp(x, from = 0, to = x.length) {
  let top = -Infinity, sum = 0;
  for (let i = from; i < to; i++) if (x[i] > top) top = x[i];
  for (let i = from; i < to; i++) sum += Math.exp(x[i] - top);
  return top + Math.log(sum);
}

/** Returns the places of the `count` largest of x[from … to), the largest first; of equals the first. */
export function largest(x, count, from = 0, to = x.length) {
  const places = [], values = [];
  for (let i = from; i < to; i++) {
    const value = x[i];
    if (values.length === count && value <= values[count - 1]) continue;
    let at = values.length;
    while (at && values[at - 1] < value) at--;
    values.splice(at, 0, value);
    places.splice(at, 0, i - from);
    if (values.length > count) { values.pop(); places.pop(); }
  }
  return places;
}

/** Returns the Euclidean length of x[at … at + width). */
export const length = (x, at, width) => Math.sqrt(dot(x, at, x, at, width));
