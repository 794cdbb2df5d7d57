// Reads the payload that lens/export.py writes: base64 to bytes, float16 and int8 to float32. Says what is wrong with one.

const SIZES = { float32: 4, uint32: 4, float16: 2, int8: 1 };

/** Returns the bytes of a base64 text, written into `bytes` from `at` on; gives the end. */
export function decodeBase64(text, bytes, at) {
  let binary;
  try {
    binary = atob(text);
  } catch {
    throw new Error("the page is damaged: its weights are not base64; make it again with python -m lens");
  }
  if (at + binary.length > bytes.length) throw new Error("the page is damaged: it holds more weights than it says");
  for (let i = 0; i < binary.length; i++) bytes[at + i] = binary.charCodeAt(i);
  return at + binary.length;
}

/** Throws an Error with cause and remedy unless `head` is a payload of this version and `size` its bytes. */
export function checkHead(head, size) {
  const again = "make the page again with python -m lens";
  if (!head || head.format !== "slm-lens") throw new Error(`this is no payload of the lens: ${again}`);
  if (head.version !== 1) throw new Error(`the payload has version ${head.version}, the page reads 1: ${again}`);
  if (!head.config || !head.tokenizer || !Array.isArray(head.tensors))
    throw new Error(`the payload lacks parts: ${again}`);
  if (head.bytes !== size) throw new Error(`the weights have ${size} bytes, not ${head.bytes}: ${again}`);
  for (const tensor of [
    ...head.tensors,
    ...head.film.flatMap((frame) => frame.tensors),
    ...Object.values(head.index ?? {}),
  ]) {
    const count = tensor.shape.reduce((a, b) => a * b, 1);
    if (!SIZES[tensor.dtype] || tensor.at % 4 || tensor.at + count * SIZES[tensor.dtype] > size)
      throw new Error(`the tensor ${tensor.name} does not fit into the payload: ${again}`);
  }
}

/** Returns float16 bits as a table of all 65,536 values. */
function halfTable() {
  const table = new Float32Array(1 << 16);
  for (let bits = 0; bits < 1 << 16; bits++) {
    const sign = bits >> 15 ? -1 : 1,
      exponent = (bits >> 10) & 31,
      fraction = bits & 1023;
    table[bits] =
      exponent === 0
        ? sign * fraction * 2 ** -24
        : exponent === 31
          ? fraction
            ? NaN
            : sign * Infinity
          : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

let halves = null;

/** Returns one tensor of the payload as numbers: a Float32Array, or a Uint32Array of ids. */
export function readTensor(bytes, { shape, dtype, at, scales }) {
  const count = shape.reduce((a, b) => a * b, 1);
  if (dtype === "float32") return new Float32Array(bytes.buffer, at, count);
  if (dtype === "uint32") return new Uint32Array(bytes.buffer, at, count);
  const out = new Float32Array(count);
  if (dtype === "float16") {
    halves ??= halfTable();
    const codes = new Uint16Array(bytes.buffer, at, count);
    for (let i = 0; i < count; i++) out[i] = halves[codes[i]];
    return out;
  }
  const codes = new Int8Array(bytes.buffer, at, count),
    width = count / shape[0];
  const scale = new Float32Array(bytes.buffer, scales, shape[0]);
  for (let row = 0, i = 0; row < shape[0]; row++)
    for (let column = 0; column < width; column++, i++) out[i] = codes[i] * scale[row];
  return out;
}

/** Returns name -> numbers for a list of tensors. */
export function readTensors(bytes, tensors) {
  return new Map(tensors.map((tensor) => [tensor.name, readTensor(bytes, tensor)]));
}
