// Reads {head, data (base64), asks: [[name, arguments], …]} from stdin, asks lens/page/worker.js, writes the answers.
import { readFileSync } from "node:fs";
import { Lens } from "../../lens/page/worker.js";

const { head, data, asks } = JSON.parse(readFileSync(0, "utf8"));
const lens = new Lens(head);
lens.add({ base64: data });
const answers = [lens.ready()];
for (const [name, options] of asks) {
  if (name === "generate") {
    const parts = [];
    await lens.generate(
      options,
      (part) => parts.push(part),
      () => false,
    );
    answers.push(parts);
  } else answers.push(lens[name](options));
}
const plain = (_, value) =>
  ArrayBuffer.isView(value) ? Array.from(value, (x) => (Number.isFinite(x) ? x : null)) : value;
process.stdout.write(JSON.stringify(answers, plain));
