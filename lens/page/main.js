// The page: opens the payload, reads the prompt, shows the view that is chosen. Everything is drawn again on a change.

import { reading } from "./charts.js";
import { isDark, setDark } from "./colour.js";
import { fill, h, percent } from "./dom.js";
import { ask, believed, change, onChange, startWorker, state } from "./state.js";
import { attentionView } from "./views/attention.js";
import { chatView } from "./views/chat.js";
import { embeddingsView } from "./views/embeddings.js";
import { filmView } from "./views/film.js";
import { interventionsView } from "./views/interventions.js";
import { lensView } from "./views/lens.js";
import { mlpView } from "./views/mlp.js";
import { samplingView } from "./views/sampling.js";
import { stackView } from "./views/stack.js";
import { tokensView } from "./views/tokens.js";

const ALL = [
  tokensView,
  stackView,
  attentionView,
  lensView,
  mlpView,
  interventionsView,
  samplingView,
  filmView,
  embeddingsView,
  chatView,
];
const NARROW = matchMedia("(max-width: 56rem)"); // as in page.css: tabs and tokens are rows that scroll
const at = (id) => document.getElementById(id);
let views = ALL;

async function open() {
  try {
    state.head = JSON.parse(at("head").textContent);
    await startWorker(JSON.parse(at("worker").textContent), state.head);
    for (const element of document.querySelectorAll("script.data")) {
      await ask("add", { base64: element.textContent });
      element.remove();
    }
    state.info = await ask("ready");
  } catch (error) {
    say(
      error instanceof SyntaxError
        ? "The page is damaged: its head is not JSON. Make it again with python -m lens."
        : error.message,
      true,
    );
    return;
  }
  views = ALL.filter(({ id }) => id !== "chat" || state.head.chat);
  begin();
}

function begin() {
  const { head } = state,
    { config } = head;
  at("name").textContent = head.name;
  fill(
    at("about"),
    [
      `${head.parameters.toLocaleString("en")} parameters`,
      `${config.n_layer} layers × ${config.n_head} heads × ${config.n_embd} wide`,
      `context ${config.block_size}`,
      head.precision,
    ].map((fact) => h("span", {}, fact)),
  );
  fill(
    at("picks"),
    h("span", {}, "Try:"),
    head.prompts.map((prompt) =>
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            at("prompt").value = prompt;
            read();
          },
        },
        prompt,
      ),
    ),
  );
  if (state.info.end === null) at("begin").closest("label").hidden = true;
  at("prompt").value = head.prompts[0];
  let waiting = 0;
  at("prompt").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(read, 100);
  });
  for (const id of ["begin", "special"]) at(id).addEventListener("change", read);
  at("tabs").append(...views.map(tab));
  at("tabs").addEventListener("keydown", moveTab);
  at("strip").addEventListener("keydown", moveToken);
  at("theme").addEventListener("click", () => {
    setDark(!isDark());
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("hashchange", follow);
  onChange(draw);
  follow();
  read();
}

function follow() {
  const wanted = location.hash.slice(1);
  state.view = views.some(({ id }) => id === wanted) ? wanted : state.view;
  draw();
}

let turn = 0;

/** Reads the prompt: tokens, then the analysis of what fits the context. What is wrong is said below the prompt. */
async function read() {
  const began = performance.now(),
    mine = ++turn,
    text = at("prompt").value,
    begin = at("begin").checked,
    special = at("special").checked;
  try {
    const { ids, tokens, words } = await ask("tokenize", { text, begin, special }),
      { most } = state.info;
    if (!ids.length) throw new Error("The prompt is empty: write something, or let it begin a document.");
    const fits = ids.slice(0, most),
      analysis = await ask("analyse", { ids: fits });
    if (mine !== turn) return;
    say(
      ids.length > most
        ? `The prompt has ${ids.length.toLocaleString("en")} tokens, and the context has room for ${most}: the first ${most} are shown.`
        : "",
    );
    change({
      text,
      begin,
      special,
      ids: fits,
      tokens: tokens.slice(0, most),
      words: words.slice(0, most),
      analysis,
      at: fits.length - 1,
    });
    timed("read the prompt", began);
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

/** Leaves the milliseconds since `began` in the browser's performance timeline, for benchmarks/lens.py. */
function timed(name, began) {
  performance.clearMeasures(name);
  performance.measure(name, { start: began });
}

function say(message, wrong = false) {
  at("said").textContent = message;
  at("said").className = wrong ? "wrong" : "note";
  document.body.classList.toggle("blocked", wrong && !state.analysis);
}

function tab({ id, title }) {
  return h(
    "button",
    {
      type: "button",
      role: "tab",
      id: `tab-${id}`,
      "aria-controls": "view",
      "data-view": id,
      onclick: () => {
        location.hash = id;
      },
    },
    title,
  );
}

function moveTab(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const next = (views.findIndex(({ id }) => id === state.view) + step + views.length) % views.length;
  location.hash = views[next].id;
  at(`tab-${views[next].id}`).focus();
}

function moveToken(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
  if (!step) return;
  event.preventDefault();
  change({ at: Math.max(0, Math.min(state.ids.length - 1, state.at + step)) });
  at("strip").querySelector(".at").focus();
}

/** Draws the strip of tokens and the chosen view; the element that had the focus gets it back. */
function draw() {
  for (const button of at("tabs").children) {
    const chosen = button.dataset.view === state.view;
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    if (chosen && NARROW.matches) button.parentElement.scrollLeft = button.offsetLeft - 60;
  }
  if (!state.analysis) return;
  drawStrip();
  const view = views.find(({ id }) => id === state.view),
    root = h("div", { class: "body" }),
    focused = document.activeElement?.dataset?.key;
  at("view").setAttribute("aria-labelledby", `tab-${view.id}`);
  fill(at("view"), h("header", {}, h("h2", {}, view.title), h("p", {}, view.about.join(" ")), links(view)), root);
  const began = performance.now();
  Promise.resolve(view.draw(root)).then(() => timed(`draw ${view.id}`, began));
  if (focused)
    at("view")
      .querySelector(`[data-key="${CSS.escape(focused)}"]`)
      ?.focus({ preventScroll: true });
}

let stripOf = null; // what the strip shows: an analysis, in light or dark

/** Draws the strip of tokens if it shows another prompt, and marks the chosen token. */
function drawStrip() {
  const held = at("strip").contains(document.activeElement);
  if (stripOf?.analysis !== state.analysis || stripOf.dark !== isDark()) {
    stripOf = { analysis: state.analysis, dark: isDark() };
    const p = believed();
    fill(
      at("strip"),
      reading(state.tokens, p, {
        top: 1,
        pick: (place) => change({ at: place }),
        name: (t) =>
          `“${state.tokens[t].shown}” · id ${state.ids[t]} · ${t ? `expected at ${percent(p[t])}` : "given"}`,
      }),
    );
  }
  const strip = at("strip").firstElementChild,
    chosen = strip.children[state.at];
  if (chosen.getAttribute("aria-pressed") !== "true") {
    for (const token of strip.children) {
      token.classList.toggle("at", token === chosen);
      token.setAttribute("aria-pressed", String(token === chosen));
      token.tabIndex = token === chosen ? 0 : -1;
    }
    if (held) chosen.focus();
  }
  if (NARROW.matches) strip.scrollLeft = chosen.offsetLeft - strip.clientWidth / 2;
}

/** Returns links to the docs and the code if the page is among its source, else their names. */
function links({ doc, code }) {
  const { root } = state.head,
    page = `docs/lens.md#${doc}`;
  const link = (path) => (root ? h("a", { href: `${root}/${path}` }, path) : h("code", {}, path));
  return h("p", { class: "links" }, "Read on: ", link(page), " · ", link(code));
}

open();
