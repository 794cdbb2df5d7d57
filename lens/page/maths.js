// Products, norms and activations on Float32Arrays; sums are float64. Shapes: n rows, each of a width, row after row.

// What `tile` multiplies, in float64 so that each number is converted once: tokens in pairs, three rows side by side.
// The arrays never change and places are masked, so that the compiled loop knows addresses and ends: a parameter's would
// be read and checked at every step.
const MOST = 1 << 15;
const tokens = new Float64Array(MOST + 2),
  threeRows = new Float64Array(MOST + 3);

/** Writes out (n, rows) = x (n, width) · wᵀ + bias, for w (rows, width) as torch keeps it; bias may be undefined. */
export function linear(out, x, n, w, rows, width, bias) {
  if (n < 2 || rows < 3 || 3 * width > MOST) for (let t = 0; t < n; t++) oneToken(out, x, t, w, rows, width);
  else {
    const most = 2 * Math.floor(MOST / (2 * width)); // tokens that are packed at once
    for (let from = 0; from < n; from += most) pairs(out, x, from, Math.min(n, from + most), w, rows, width);
  }
  if (bias) for (let t = 0, i = 0; t < n; t++) for (let row = 0; row < rows; row++, i++) out[i] += bias[row];
  return out;
}

/** Multiplies the tokens from … end; the last pair and the last three rows overlap those before, if some are left over. */
function pairs(out, x, from, end, w, rows, width) {
  packTokens(x, from, end, width);
  for (let r = 0; r < rows; r += 3) {
    const row = Math.min(r, rows - 3);
    packRows(w, row, width);
    for (let t = from, at = 0; t < end; t += 2, at += 2 * width)
      tile(out, Math.min(t, end - 2) * rows + row, rows, at, width);
  }
}

function packTokens(x, from, end, width) {
  for (let t = from, to = 0; t < end; t += 2) {
    const first = Math.min(t, end - 2) * width;
    for (let i = first; i < first + width; i++) {
      tokens[to++] = x[i];
      tokens[to++] = x[i + width];
    }
  }
}

function packRows(w, row, width) {
  for (let i = row * width, to = 0; to < 3 * width; i++) {
    threeRows[to++] = w[i];
    threeRows[to++] = w[i + width];
    threeRows[to++] = w[i + 2 * width];
  }
}

/** Multiplies the packed pair that begins at `at` by the packed rows. Six sums and what they need fit into the sixteen
 * registers; a seventh would wait in memory, and each step for it. `| 0` and shifts need no check for overflow. */
function tile(out, to, rows, at, width) {
  let a = 0,
    b = 0,
    c = 0,
    d = 0,
    e = 0,
    f = 0;
  for (let i = 0; i < width; i = (i + 1) | 0) {
    const z = (i + (i << 1)) & (MOST - 1),
      k = (at + (i << 1)) & (MOST - 1),
      x0 = tokens[k],
      x1 = tokens[k + 1],
      w0 = threeRows[z],
      w1 = threeRows[z + 1],
      w2 = threeRows[z + 2];
    a += x0 * w0;
    b += x0 * w1;
    c += x0 * w2;
    d += x1 * w0;
    e += x1 * w1;
    f += x1 * w2;
  }
  out[to] = a;
  out[to + 1] = b;
  out[to + 2] = c;
  out[to + rows] = d;
  out[to + rows + 1] = e;
  out[to + rows + 2] = f;
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
