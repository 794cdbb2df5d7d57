// Reads {head, data (base64), asks: [[name, arguments], …], assisted} from stdin, asks lens/page/worker.js, writes the
// answers; with an assistant also how often it was asked to read.
import { readFileSync } from "node:fs";
import { Lens, serve } from "../../lens/page/worker.js";

const { head, data, asks, assisted } = JSON.parse(readFileSync(0, "utf8"));
const lens = new Lens(head);
lens.add({ base64: data });
const { port1, port2 } = new MessageChannel();
let reads = 0;
if (assisted) {
  serve(port1);
  port1.addEventListener("message", (event) => (reads += event.data.name === "read"));
  lens.port = port2;
}
const answers = [lens.ready()];
while (assisted && !lens.assistant.ready) await new Promise((go) => setTimeout(go));
for (const [name, options] of asks) {
  if (name === "generate") {
    const parts = [];
    await lens.generate(
      options,
      (part) => parts.push(part),
      () => false,
    );
    answers.push(parts);
  } else answers.push(await lens[name](options));
}
if (assisted) answers.push(reads);
port1.close();
const plain = (_, value) =>
  ArrayBuffer.isView(value) ? Array.from(value, (x) => (Number.isFinite(x) ? x : null)) : value;
process.stdout.write(JSON.stringify(answers, plain));
