// The forward pass of model/gpt.py, every variant but state spaces, latent attention and experts: one function for
// a whole prompt and for one more token with a cache. It can keep all that it computes, switch parts off, and put
// another prompt's numbers in place of its own.
//
// Shapes: n new tokens of T so far; C = n_embd; H query heads, K key and value heads of D numbers; V ids.

import { ACTIVATIONS, linear, norm, softmax } from "./maths.js";

/** The end of a model: the final norm and the head, which say what comes next after a row of the stream. */
export class Head {
  constructor(config, weights) {
    const { n_embd: C, vocab_size: V } = config;
    Object.assign(this, { config, weights, C, V });
    this.ratio = config.mup_width ? C / config.mup_width : 1;
    this.post = config.norm_place === "post";
    this.head = weights.get("lm_head.weight") ?? weights.get("wte.weight");
    this.finalNorm = this.post ? null : this.normOf("ln_f");
  }

  normOf(name) {
    const { norm_eps: eps, norm: kind } = this.config;
    return { weight: this.get(`${name}.weight`), bias: this.weights.get(`${name}.bias`), eps, rms: kind === "rmsnorm" };
  }

  get(name) {
    const found = this.weights.get(name);
    if (!found) throw new Error(`the payload lacks the weight ${name}: make the page again with python -m lens`);
    return found;
  }

  /** Returns the final norm of n rows of the stream, (n, C). */
  final(x, n) {
    return this.finalNorm ? norm(x, n, this.C, this.finalNorm) : x;
  }

  /** Returns logits (n, V) of what `run` returns, (n, C). */
  logits(final, n) {
    const out = linear(new Float32Array(n * this.V), final, n, this.head, this.V, this.C);
    const { logit_softcap: cap } = this.config;
    if (this.ratio !== 1) for (let i = 0; i < out.length; i++) out[i] /= this.ratio;
    if (cap) for (let i = 0; i < out.length; i++) out[i] = cap * Math.tanh(out[i] / cap);
    return out;
  }
}

export class Model extends Head {
  constructor(config, weights) {
    super(config, weights);
    const { n_layer: L, n_head: H } = config;
    Object.assign(this, { L, H, K: config.n_kv_head ?? H, D: this.C / H });
    this.inner = config.n_inner ?? 4 * this.C;
    this.blocks = Array.from({ length: L }, (_, layer) => this.block(`h.${layer}.`));
    this.angles = config.positions === "rotary" ? turns(config.block_size, this.D, config.rope_theta) : null;
  }

  block(at) {
    const part = (name) => ({ weight: this.get(`${at}${name}.weight`), bias: this.weights.get(`${at}${name}.bias`) });
    const scale = (name) => ({ weight: this.get(`${at}attn.${name}.weight`), eps: this.config.norm_eps, rms: true });
    return {
      ln_1: this.normOf(`${at}ln_1`),
      ln_2: this.normOf(`${at}ln_2`),
      c_attn: part("attn.c_attn"),
      attn_proj: part("attn.c_proj"),
      q_norm: this.config.qk_norm ? scale("q_norm") : null,
      k_norm: this.config.qk_norm ? scale("k_norm") : null,
      value_scale: this.config.value_embedding ? this.get(`${at}attn.value_scale`)[0] : 0,
      c_fc: part("mlp.c_fc"),
      c_gate: this.config.mlp === "swiglu" ? part("mlp.c_gate") : null,
      mlp_proj: part("mlp.c_proj"),
    };
  }

  /** Returns an empty cache: keys and values of `tokens` tokens for each layer. */
  cache(tokens = this.config.block_size) {
    const size = tokens * this.K * this.D;
    return {
      used: 0,
      room: tokens,
      layers: this.blocks.map(() => ({ k: new Float32Array(size), v: new Float32Array(size) })),
    };
  }

  /** Returns what the head reads, (n, C), for n ids after those in the cache. `trace` and `edits`: see below. */
  run(ids, cache = this.cache(ids.length), trace = null, edits = NO_EDITS) {
    const { C } = this,
      n = ids.length,
      start = cache.used;
    if (start + n > cache.room) throw new Error(`${start + n} tokens do not fit into a cache of ${cache.room}`);
    let x = this.embed(ids, start);
    const embedding = x;
    edits.patch("stream", -1, x, C, start);
    if (trace) {
      Object.assign(trace, { T: n, embedding: x.slice(), layers: [] });
      trace.heard?.(trace.embedding, 0);
    }
    this.blocks.forEach((block, layer) => {
      const kept = trace ? {} : null;
      if (this.config.residual_scalars) x = this.mixed(x, embedding, layer);
      if (kept) kept.start = x.slice();
      x = this.sublayer(
        x,
        n,
        block.ln_1,
        kept,
        "attention",
        (read) => this.attend(read, ids, layer, cache, kept, edits),
        (out) => edits.output("attention", layer, out, C, start),
      );
      x = this.sublayer(
        x,
        n,
        block.ln_2,
        kept,
        "mlp",
        (read) => this.mlp(read, n, block, kept),
        (out) => edits.output("mlp", layer, out, C, start),
      );
      edits.patch("stream", layer, x, C, start);
      if (kept) {
        kept.stream = x.slice();
        trace.layers.push(kept);
        trace.heard?.(kept.stream, layer + 1);
      }
    });
    cache.used += n;
    const final = this.final(x, n);
    if (trace) trace.final = final;
    return final;
  }

  /** Returns the stream (n, C) after one sublayer, which reads a norm of it (pre) or is normalized with it (post). */
  sublayer(x, n, weights, kept, name, compute, edit) {
    const { C } = this,
      read = this.post ? x : norm(x, n, C, weights),
      out = compute(read);
    edit(out);
    const sum = new Float32Array(n * C);
    for (let i = 0; i < sum.length; i++) sum[i] = x[i] + out[i];
    const next = this.post ? norm(sum, n, C, weights) : sum;
    if (kept) {
      kept[`${name}Read`] = read;
      kept[`${name}Out`] = out;
      kept[`${name}Sum`] = sum;
      if (name === "attention") kept.middle = next;
    }
    return next;
  }

  embed(ids, start) {
    const { C, config } = this,
      wte = this.get("wte.weight"),
      x = new Float32Array(ids.length * C);
    const wpe = config.positions === "learned" ? this.get("wpe.weight") : null;
    const scale = config.positions === "sinusoidal" ? Math.sqrt(C) : 1;
    ids.forEach((id, t) => {
      for (let i = 0; i < C; i++) x[t * C + i] = wte[id * C + i] * scale + (wpe ? wpe[(start + t) * C + i] : 0);
      if (config.positions === "sinusoidal")
        sines(C, start + t).forEach((value, i) => {
          x[t * C + i] += value;
        });
    });
    return x;
  }

  mixed(x, embedding, layer) {
    const a = this.get("stream_scale")[layer],
      b = this.get("embedding_scale")[layer];
    return x.map((value, i) => a * value + b * embedding[i]);
  }

  /** Returns what attention adds, (n, C). Keeps q, k, v, the weights (H, n, T) and each head's average (n, C). */
  attend(x, ids, layer, cache, kept, edits) {
    const { H, K, D, C } = this,
      n = ids.length,
      start = cache.used,
      block = this.blocks[layer];
    const wide = (H + 2 * K) * D;
    const qkv = linear(new Float32Array(n * wide), x, n, block.c_attn.weight, wide, C, block.c_attn.bias);
    const { k, v } = cache.layers[layer],
      q = new Float32Array(n * C);
    for (let t = 0; t < n; t++) {
      const from = t * wide,
        to = (start + t) * K * D;
      q.set(qkv.subarray(from, from + C), t * C);
      k.set(qkv.subarray(from + C, from + C + K * D), to);
      v.set(qkv.subarray(from + C + K * D, from + wide), to);
      this.adjust(
        q.subarray(t * C, (t + 1) * C),
        k.subarray(to, to + K * D),
        v.subarray(to, to + K * D),
        block,
        ids[t],
        start + t,
      );
    }
    const total = start + n,
      weights = kept ? new Float32Array(H * n * total) : null;
    const y = this.average(q, k, v, n, start, weights);
    edits.heads(layer, y, n, D, C, start);
    if (kept) Object.assign(kept, { q, k: k.slice(0, total * K * D), v: v.slice(0, total * K * D), weights, heads: y });
    return linear(new Float32Array(n * C), y, n, block.attn_proj.weight, C, C, block.attn_proj.bias);
  }

  /** Norms and turns one token's q and k, and adds the value embedding to its v, in place. */
  adjust(q, k, v, block, id, position) {
    const { D, config } = this;
    if (block.q_norm) {
      q.set(norm(q, q.length / D, D, block.q_norm));
      k.set(norm(k, k.length / D, D, block.k_norm));
    }
    if (this.ratio !== 1) for (let i = 0; i < q.length; i++) q[i] *= this.ratio ** -0.5;
    if (config.value_embedding) {
      const table = this.get("wve.weight");
      for (let i = 0; i < v.length; i++) v[i] += block.value_scale * table[id * v.length + i];
    }
    if (this.angles) {
      turn(q, this.angles, position, D);
      turn(k, this.angles, position, D);
    }
  }

  /** Returns softmax(q kᵀ / √D) v for n queries (n, C), over the keys that each one sees. */
  average(q, k, v, n, start, kept) {
    const { H, K, D, C } = this,
      total = start + n,
      shared = H / K,
      window = this.config.window ?? Infinity;
    const y = new Float32Array(n * C),
      scores = new Float32Array(total),
      scale = 1 / Math.sqrt(D);
    for (let head = 0; head < H; head++) {
      const group = Math.floor(head / shared) * D;
      for (let t = 0; t < n; t++) {
        const last = start + t,
          first = Math.max(0, last - window + 1),
          at = t * C + head * D;
        for (let j = first; j <= last; j++) {
          const key = j * K * D + group;
          let sum = 0;
          for (let i = 0; i < D; i++) sum += q[at + i] * k[key + i];
          scores[j] = sum * scale;
        }
        softmax(scores, first, last + 1);
        for (let j = first; j <= last; j++) {
          const value = j * K * D + group,
            weight = scores[j];
          for (let i = 0; i < D; i++) y[at + i] += weight * v[value + i];
        }
        if (kept) kept.set(scores.subarray(first, last + 1), (head * n + t) * total + first);
      }
    }
    return y;
  }

  /** Returns what the MLP adds, (n, C). Keeps the values inside, (n, inner). */
  mlp(x, n, block, kept) {
    const { C, inner, config } = this;
    const hidden = linear(new Float32Array(n * inner), x, n, block.c_fc.weight, inner, C, block.c_fc.bias);
    if (block.c_gate) {
      const gate = linear(new Float32Array(n * inner), x, n, block.c_gate.weight, inner, C, block.c_gate.bias);
      ACTIVATIONS.silu(gate);
      for (let i = 0; i < hidden.length; i++) hidden[i] *= gate[i];
    } else ACTIVATIONS[config.mlp](hidden);
    if (kept) kept.hidden = hidden;
    return linear(new Float32Array(n * C), hidden, n, block.mlp_proj.weight, C, inner, block.mlp_proj.bias);
  }
}

/** What a forward pass changes: parts that are off, and numbers of another pass that are put in their place. */
export class Edits {
  /** `off` holds names such as "attention 0", "mlp 1", "head 0 3"; a patch is {site, layer, position, vector}. */
  constructor(off = [], patches = []) {
    this.off = new Set(off);
    this.patches = patches;
  }

  output(site, layer, out, width, start) {
    if (this.off.has(`${site} ${layer}`)) out.fill(0);
    this.patch(site, layer, out, width, start);
  }

  heads(layer, y, n, width, stride) {
    for (let head = 0; head * width < stride; head++)
      if (this.off.has(`head ${layer} ${head}`))
        for (let t = 0; t < n; t++) y.fill(0, t * stride + head * width, t * stride + (head + 1) * width);
  }

  patch(site, layer, x, width, start) {
    for (const patch of this.patches) {
      const row = patch.position - start;
      if (patch.site === site && patch.layer === layer && row >= 0 && row * width < x.length)
        x.set(patch.vector, row * width);
    }
  }
}

const NO_EDITS = new Edits();

/** Returns cosine and sine of each pair's angle at each position, in the precision of torch's angles; theta is its base. */
function turns(positions, width, theta) {
  const half = width / 2,
    table = new Float32Array(positions * width);
  for (let p = 0; p < positions; p++)
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(p * Math.fround(theta ** -Math.fround((2 * i) / width)));
      table[p * width + 2 * i] = Math.cos(angle);
      table[p * width + 2 * i + 1] = Math.sin(angle);
    }
  return table;
}

/** Turns each pair of neighbours of each head by its angle (rotary positions), in place. */
function turn(x, table, position, width) {
  for (let at = 0; at < x.length; at += width)
    for (let i = 0; i < width; i += 2) {
      const cos = table[position * width + i],
        sin = table[position * width + i + 1],
        a = x[at + i],
        b = x[at + i + 1];
      x[at + i] = a * cos - b * sin;
      x[at + i + 1] = a * sin + b * cos;
    }
}

/** Returns the sinusoidal positions of one place, (C,). */
export function sines(width, position) {
  return Float32Array.from({ length: width }, (_, i) => {
    const angle = Math.fround(position * Math.fround(10000 ** -Math.fround((i - (i % 2)) / width)));
    return i % 2 ? Math.cos(angle) : Math.sin(angle);
  });
}
