// The training film: the same prompt through the checkpoints that the run kept, with the loss curve.

import { distribution, heatMap, legend, lines, reading } from "../charts.js";
import { fill, h, number, percent } from "../dom.js";
import { ask, state } from "../state.js";

const film = { frame: 0, of: null, found: [], playing: null };

export const filmView = {
  id: "film",
  title: "Training film",
  doc: "training-film",
  code: "training/checkpoint.py",
  about: [
    "This is the same prompt read by the model as it was at earlier steps of its training.",
    "Drag the slider, or let it play: the tokens turn blue as the model learns to expect them, and the heads find their patterns.",
  ],
  draw(root) {
    const { head } = state;
    if (!head.film.length) {
      root.append(
        h(
          "section",
          { class: "card" },
          h(
            "p",
            { class: "note" },
            "This run kept no checkpoints. A run that is trained with --checkpoint-every 200 --keep 12 has a film.",
          ),
        ),
        head.log.length ? curve(null) : "",
      );
      return null;
    }
    const scene = h("div", { class: "scene" }),
      output = h("output", {}),
      slider = h("input", {
        type: "range",
        min: 0,
        max: head.film.length - 1,
        step: 1,
        value: String(film.frame),
        "aria-label": "step of the training",
        "data-key": "film",
      });
    const show = (frame) => {
      film.frame = frame;
      slider.value = String(frame);
      output.textContent = `step ${head.film[frame].step.toLocaleString("en")}`;
      return drawScene(scene, show);
    };
    slider.addEventListener("input", () => show(Number(slider.value)));
    const play = h(
      "button",
      {
        type: "button",
        class: "main",
        "data-key": "play",
        onclick: () => {
          stopFilm();
          if (play.textContent === "Pause") {
            play.textContent = "Play";
            return;
          }
          play.textContent = "Pause";
          tick();
        },
      },
      "Play",
    );
    const tick = () => {
      const slow = matchMedia("(prefers-reduced-motion: reduce)").matches;
      show((film.frame + 1) % head.film.length);
      film.playing = setTimeout(
        () => (play.isConnected && film.frame < head.film.length - 1 ? tick() : (play.textContent = "Play")),
        slow ? 2000 : 700,
      );
    };
    root.append(h("section", { class: "card filmbar" }, play, slider, output), scene);
    return show(film.frame);
  },
};

function stopFilm() {
  clearTimeout(film.playing);
}

async function frameOf(frame) {
  if (film.of !== state.ids) Object.assign(film, { of: state.ids, found: [] });
  return (film.found[frame] ??= ask("film", { ids: state.ids, frame }));
}

let filmTurn = 0;

async function drawScene(root, show) {
  const turn = ++filmTurn,
    { head, tokens, info } = state,
    { logp, rows, attention } = await frameOf(film.frame),
    T = tokens.length;
  if (turn !== filmTurn) return;
  const mean = logp.reduce((a, b) => a + b, 0) / Math.max(1, logp.length),
    likely = [null, ...Array.from(logp, Math.exp)];
  fill(
    root,
    h(
      "div",
      { class: "two" },
      h(
        "section",
        { class: "card" },
        h("h3", {}, "How well it expects each token"),
        reading(tokens, likely, {
          top: 1,
          name: (t) => (t ? `“${tokens[t].shown}”: ${percent(likely[t])}` : "the first token is given"),
        }),
        legend("0%", "100%"),
        h(
          "dl",
          { class: "figures" },
          h("dt", {}, "loss on this prompt"),
          h("dd", {}, `${number(-mean)} nats per token`),
        ),
        h("h4", {}, "After the last token"),
        distribution(rows),
      ),
      h(
        "div",
        {},
        curve(head.film[film.frame].step, show),
        h(
          "section",
          { class: "card" },
          h("h3", {}, "Attention"),
          h(
            "div",
            { class: "heads", style: { "--heads": String(info.H) } },
            attention.map((weights, layer) =>
              Array.from({ length: info.H }, (_, each) =>
                h(
                  "span",
                  { class: "headmap" },
                  heatMap(weights.subarray(each * T * T, (each + 1) * T * T), T, T, {
                    top: 1,
                    root: true,
                    label: `attention of head ${layer}.${each}`,
                  }),
                  h("span", {}, `${layer}.${each}`),
                ),
              ),
            ),
          ),
        ),
      ),
    ),
    gathered(),
  );
}

function curve(step, show = null) {
  const { log, film: frames } = state.head,
    train = log.filter(([, loss]) => Number.isFinite(loss)),
    val = log.filter(([, , loss]) => Number.isFinite(loss)),
    last = log.at(-1)?.[0] ?? 0;
  const pick =
    show &&
    ((x) =>
      show(
        frames.reduce((best, frame, i) => (Math.abs(frame.step - x) < Math.abs(frames[best].step - x) ? i : best), 0),
      ));
  return h(
    "section",
    { class: "card" },
    h("h3", {}, "Loss, nats per token"),
    lines(
      [
        { name: "training", values: train.map(([, loss]) => loss), x: train.map(([at]) => at), kind: "faint" },
        { name: "validation", values: val.map(([, , loss]) => loss), x: val.map(([at]) => at), kind: "main" },
      ],
      {
        low: 0,
        mark: step,
        pick,
        label: "loss by step",
        ticks: Array.from({ length: 5 }, (_, i) => ({
          x: (last * i) / 4,
          text: Math.round((last * i) / 4).toLocaleString("en"),
        })),
      },
    ),
  );
}

/** Returns the heat map of all frames that were seen: steps × tokens. */
function gathered() {
  const place = h("section", { class: "card" }),
    { head, tokens } = state;
  Promise.all(head.film.map((_, frame) => frameOf(frame))).then((frames) => {
    const values = Float32Array.from(frames.flatMap(({ logp }) => Array.from(logp, Math.exp)));
    if (tokens.length > 1)
      fill(
        place,
        h("h3", {}, "All steps at once"),
        h(
          "p",
          { class: "note" },
          "A row is a step, the first at the top; a column is a token of the prompt, as dark as the model expected it.",
        ),
        h(
          "div",
          { class: "heatbox low" },
          heatMap(values, frames.length, tokens.length - 1, {
            top: 1,
            label: "probability of each token by step",
            name: (row, column, p) =>
              `step ${head.film[row].step.toLocaleString("en")} · “${tokens[column + 1].shown}”: ${percent(p)}`,
          }),
        ),
        legend("0%", "100%"),
      );
  });
  return place;
}
