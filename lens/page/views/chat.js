// Chat: turns written with the run's template, answered in the page.

import { fill, h } from "../dom.js";
import { ask, rules, state } from "../state.js";

const talk = { turns: [], running: null, seed: 1 };

export const chatView = {
  id: "chat",
  title: "Chat",
  doc: "chat",
  code: "inference/chat.py",
  about: [
    "This run was trained to answer: a template marks who speaks, and the model continues where the assistant's turn begins.",
    "Nothing leaves this page; the rules are those of the view Sampling.",
  ],
  draw(root) {
    if (state.head.chat.refused) {
      root.append(
        h(
          "section",
          { class: "card" },
          h("p", { class: "note" }, `This page cannot hold a conversation: ${state.head.chat.refused}.`),
        ),
      );
      return;
    }
    const log = h("div", { class: "talk", "aria-live": "polite" }),
      input = h("textarea", {
        rows: 2,
        "aria-label": "your message",
        placeholder: "Write a message",
        "data-key": "message",
      });
    const note = h("p", { class: "wrong", role: "status" }),
      send = h("button", { type: "submit", class: "main", "data-key": "send" }, "Send");
    const draw = () => {
      fill(
        log,
        talk.turns.map((turn, place) => h("p", { class: place % 2 ? "assistant" : "user" }, turn)),
      );
      log.scrollTop = log.scrollHeight;
    };
    const form = h(
      "form",
      {
        class: "talkform",
        onsubmit: async (event) => {
          event.preventDefault();
          if (talk.running) {
            talk.running.stop();
            return;
          }
          const text = input.value.trim();
          if (!text) {
            note.textContent = "The message is empty: write something.";
            return;
          }
          input.value = "";
          note.textContent = "";
          await answer(text, draw, note, send);
        },
      },
      input,
      h(
        "div",
        { class: "buttons" },
        send,
        h(
          "button",
          {
            type: "button",
            "data-key": "new",
            onclick: () => {
              talk.running?.stop();
              talk.turns = [];
              draw();
            },
          },
          "New conversation",
        ),
      ),
    );
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    root.append(h("section", { class: "card" }, log, form, note));
    draw();
  },
};

async function answer(text, draw, note, send) {
  const { stops } = state.head.chat,
    turns = [...talk.turns, text],
    ids = [];
  try {
    const prompt = await ask("conversation", { turns }),
      block = state.head.config.block_size;
    if (prompt.length >= block)
      throw new Error(`the conversation has ${prompt.length} tokens, the context ${block}: begin a new one`);
    await ask("begin", { name: "chat", ids: prompt });
    talk.turns = [...turns, ""];
    send.textContent = "Stop";
    talk.running = ask(
      "generate",
      { name: "chat", rules, count: block - prompt.length, seed: talk.seed++, stop: stops },
      (token) => {
        if (token.end) return;
        ids.push(...token.bytes);
        talk.turns[turns.length] = new TextDecoder().decode(Uint8Array.from(ids)).trim();
        draw();
      },
    );
    draw();
    await talk.running;
    if (!talk.turns[turns.length]) talk.turns[turns.length] = "…";
    draw();
  } catch (error) {
    note.textContent = error.message;
  } finally {
    talk.running = null;
    send.textContent = "Send";
  }
}
