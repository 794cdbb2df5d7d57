// What the page knows: the run, the prompt, its analysis, the chosen token. The worker answers questions by `ask`.

/** The run's head, the tokens, the analysis of the prompt, the chosen position `at`, the view that is open. */
export const state = {
  head: null,
  info: null,
  text: "",
  tokens: [],
  ids: [],
  words: [],
  analysis: null,
  at: 0,
  view: "tokens",
};

let worker = null,
  count = 0;
const waiting = new Map();

/** Begins the worker from its source text, opens the payload's head, and lends it a second worker on a second core. */
export function startWorker(source, head) {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  worker = new Worker(url);
  worker.onmessage = ({ data: { call, answer, error, part } }) => {
    const { resolve, reject, tell } = waiting.get(call);
    if (part !== undefined) return tell(part);
    waiting.delete(call);
    if (error !== undefined) reject(new Error(error));
    else resolve(answer);
  };
  if (!(navigator.hardwareConcurrency > 1)) return ask("open", { head });
  const { port1, port2 } = new MessageChannel();
  new Worker(url).postMessage({ serve: port1 }, [port1]);
  return ask("open", { head }, undefined, port2);
}

/** Asks the worker and returns a promise of its answer; `tell` hears what comes before it. A port is handed over. */
export function ask(name, options = {}, tell = () => {}, port = null) {
  const call = ++count,
    promise = new Promise((resolve, reject) => waiting.set(call, { resolve, reject, tell }));
  worker.postMessage({ call, name, options, port }, port ? [port] : []);
  promise.stop = () => worker.postMessage({ stop: call });
  return promise;
}

/** Returns the rules that the views of sampling share, with the page's defaults. */
export const rules = { temperature: 0.7, top_k: null, top_p: null, min_p: null };

const listeners = [];

/** Calls `listener` whenever `changed` is called. */
export const onChange = (listener) => listeners.push(listener);

/** Changes the state and draws again. */
export function change(values) {
  Object.assign(state, values);
  for (const listener of listeners) listener();
}

/** Returns the probability that the model gave to each token, null for the first. */
export function believed() {
  const { lens } = state.analysis,
    last = (lens.points - 1) * lens.T;
  return state.ids.map((_, t) => (t ? Math.exp(lens.logp[last + t - 1]) : null));
}
