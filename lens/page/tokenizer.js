// Text to token ids and back by the merges of a byte-level BPE: what bpe/ computes, and the tree of merges of a word.

// bpe/pretokenize.py's patterns in JavaScript's spelling: \s is Unicode's White_Space there, (?i:…) is written out, and
// the one possessive quantifier is a look-ahead with a back reference.
const SPACE = "\\p{White_Space}",
  OTHER = "\\P{White_Space}";
const CONTRACTION = "(?:'[sStTmMdD\\u017f]|'[lL][lL]|'[vV][eE]|'[rR][eE])";
const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]",
  LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const SIGNS = `[^${SPACE}\\p{L}\\p{N}]`;
const LLAMA3 =
  `${CONTRACTION}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?${SIGNS}+[\\r\\n]*|${SPACE}*[\\r\\n]` +
  `|${SPACE}+(?!${OTHER})|${SPACE}`;
const PATTERNS = {
  gpt2: `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?${SIGNS}+|${SPACE}+(?!${OTHER})|${SPACE}+`,
  llama3: LLAMA3,
  qwen2: LLAMA3.replace("\\p{N}{1,3}", "\\p{N}"),
  cl100k: LLAMA3.replace(`|${SPACE}*[\\r\\n]|`, `|(?=(${SPACE}+))\\1(?!${OTHER})|${SPACE}*[\\r\\n]|`),
  o200k:
    `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${CONTRACTION}?|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${CONTRACTION}?` +
    `|\\p{N}{1,3}| ?${SIGNS}+[\\r\\n/]*|${SPACE}*[\\r\\n]+|${SPACE}+(?!${OTHER})|${SPACE}+`,
};
const NEVER = 2 ** 31;

export class Tokenizer {
  /** Takes `tokenizer` of the payload's head. */
  constructor({ pattern, tokens, merges, special, end, whole }) {
    this.pattern = new RegExp(PATTERNS[pattern], "gu");
    this.bytes = tokens.map((text) => Uint8Array.from(text, (character) => character.charCodeAt(0)));
    this.size = tokens.length;
    this.special = new Map(Object.entries(special));
    this.names = new Map([...this.special].map(([name, id]) => [id, name]));
    this.end = end;
    this.wholeTokens = whole ? new Map(tokens.map((text, id) => [text, id])) : null;
    this.ranks = new Map(); // left · size + right -> rank
    this.made = [];
    for (let at = 0; at < merges.length; at += 3) {
      this.ranks.set(merges[at] * this.size + merges[at + 1], at / 3);
      this.made.push(merges[at + 2]);
    }
    this.ofByte = new Int32Array(256).fill(-1);
    this.bytes.forEach((bytes, id) => {
      if (bytes.length === 1 && !this.names.has(id)) this.ofByte[bytes[0]] = id;
    });
    this.known = new Map(); // pre-token -> ids
  }

  /** Returns the ids of a text; the names of special tokens are ordinary text unless `special`. */
  encode(text, special = false) {
    const ids = [];
    for (const [place, part] of this.splitSpecial(text, special).entries()) {
      if (place % 2) ids.push(this.special.get(part));
      else for (const pretoken of part.match(this.pattern) ?? []) ids.push(...this.encodePretoken(pretoken));
    }
    return ids;
  }

  /** Cuts special tokens out: ordinary text at even places. Of overlapping ones the first wins, then the longest. */
  splitSpecial(text, special) {
    const names = special ? [...this.special.keys()].sort((a, b) => b.length - a.length) : [];
    if (!names.length) return [text];
    return text.split(new RegExp(`(${names.map((name) => name.replace(/[^\w\s]/g, "\\$&")).join("|")})`));
  }

  encodePretoken(pretoken) {
    let ids = this.known.get(pretoken);
    if (!ids) {
      ids = this.merge(this.bytesOf(pretoken));
      if (this.known.size > 20000) this.known.clear();
      this.known.set(pretoken, ids);
    }
    return ids;
  }

  bytesOf(pretoken) {
    const bytes = new TextEncoder().encode(pretoken);
    const whole = this.wholeTokens?.get(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    return whole === undefined ? Array.from(bytes, (byte) => this.ofByte[byte]) : [whole];
  }

  /** Merges the adjacent pair of lowest rank, the leftmost first, until none is left; `tell` hears of each merge. */
  merge(symbols, tell = () => {}) {
    const ids = [...symbols],
      rank = (i) => this.ranks.get(ids[i] * this.size + ids[i + 1]) ?? NEVER;
    const ranks = ids.map((_, i) => (i + 1 < ids.length ? rank(i) : NEVER));
    while (ids.length > 1) {
      let place = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[place]) place = i;
      if (ranks[place] === NEVER) break;
      const made = this.made[ranks[place]];
      tell(place, made, ranks[place]);
      ids.splice(place, 2, made);
      ranks.splice(place, 1);
      ranks[place] = place + 1 < ids.length ? rank(place) : NEVER;
      if (place) ranks[place - 1] = rank(place - 1);
    }
    return ids;
  }

  /** Returns the trees of a pre-token: nodes {id, rank, left, right} of what was merged, leaves are its bytes. */
  tree(pretoken) {
    const start = this.bytesOf(pretoken);
    const nodes = start.map((id) => ({ id }));
    this.merge(start, (place, id, rank) =>
      nodes.splice(place, 2, { id, rank, left: nodes[place], right: nodes[place + 1] }),
    );
    return nodes;
  }

  /** Returns the pre-token that each token of `text` belongs to, in order; null for a special token. */
  words(text, special = false) {
    return this.splitSpecial(text, special).flatMap((part, place) =>
      place % 2
        ? [null]
        : (part.match(this.pattern) ?? []).flatMap((word) => this.encodePretoken(word).map(() => word)),
    );
  }

  /** Returns the bytes of ids, joined; an id without a token has none. */
  decodeBytes(ids) {
    const parts = ids.map((id) => this.bytes[id] ?? new Uint8Array());
    const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      joined.set(part, at);
      at += part.length;
    }
    return joined;
  }

  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.decodeBytes(ids));
  }

  /** Returns what is drawn for one token: its text, white space made visible, or its bytes if they are no characters. */
  shown(id) {
    const bytes = this.bytes[id];
    if (!bytes || !bytes.length) return `⟨${id}⟩`;
    let text;
    try {
      text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return Array.from(bytes, (byte) => (byte > 32 && byte < 127 ? String.fromCharCode(byte) : hex(byte))).join("");
    }
    return text
      .replace(/\n/g, "⏎")
      .replace(/\t/g, "⇥")
      .replace(/ /g, "·")
      .replace(/[\p{C}\p{Z}]/gu, (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`);
  }
}

const hex = (byte) => `\\x${byte.toString(16).padStart(2, "0")}`;
