# %% [markdown]
# # A vocabulary is a summary of its text
#
# Byte-pair encoding joins what often occurs together. So a vocabulary shows what it was learned from: this notebook
# learns two, from stories and from Python code, and lets each read the other's text. How the algorithm works, by
# hand, is in [docs/bpe.md](../docs/bpe.md).
#
# It is a Python file with cells: `python notebooks/1_tokens.py` runs it, and VS Code, PyCharm and Jupyter (with
# jupytext) open it as a notebook.

# %%
from pathlib import Path

import bpe
from bpe import train
from bpe.view import spans
from data.stories import story

stories = "\n".join(story(1, number) for number in range(300))
code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(bpe.__file__).parent.glob("*.py")))
print(f"{len(stories):,} characters of stories, {len(code):,} of code")

# %% [markdown]
# ## One sentence, growing vocabularies
#
# At 256 ids every token is a byte. Each further id joins two neighbours: first letters, then syllables, then whole
# words with the space before them. A bar is where one token ends and the next begins.

# %%
SENTENCE = "Once there was a little girl who found a hippopotamus."  # change it

for size in (257, 300, 400, 600, 1000):
    tokenizer = train([stories], size, progress=False)
    print(f"{size:5} ids, {len(tokenizer.encode(SENTENCE)):2} tokens: {spans(tokenizer, SENTENCE)}")

# %% [markdown]
# A notebook colours the tokens if the result is not printed:

# %%
spans(tokenizer, SENTENCE)

# %% [markdown]
# What the stories are about can be read off the merges. The first are the commonest pairs of English letters; the
# last are words of these stories.

# %%
joined = [(left + right).decode("utf-8", "replace") for left, right in tokenizer.merges]
print("first:", joined[:12])
print("last: ", joined[-12:])

# %% [markdown]
# ## Two readers
#
# Each learns from nine tenths of its text and then reads the last tenth of both. The more bytes a token holds, the
# shorter the text is for a model, and the further it can look back.


# %%
def parts(text: str) -> tuple[str, str]:
    """Return what is learned from, and what is only read."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


texts = {"stories": parts(stories), "code": parts(code)}
readers = {name: train([learned], 1500, progress=False) for name, (learned, _) in texts.items()}
density = {
    (reader, name): len(unseen.encode()) / len(tokenizer.encode(unseen))
    for reader, tokenizer in readers.items()
    for name, (_, unseen) in texts.items()
}
for (reader, name), value in density.items():
    print(f"learned from {reader:8} reads {name:8} {value:.2f} bytes a token")

# %% [markdown]
# Each is at home in its own text. That is why a model's vocabulary is learned from the text it will see, and why a
# small vocabulary of one's own can beat GPT-2's 50,257 ids on it.

# %%
assert density["stories", "stories"] > 1.5 * density["code", "stories"]
assert density["code", "code"] > 1.2 * density["stories", "code"]
for reader, tokenizer in readers.items():
    print(f"{reader:8}", spans(tokenizer, "for word in words: print(word)  # Lily found a kitten"))

# %% [markdown]
# ## Things to try
#
# - Put a word twice into `SENTENCE`, once at its beginning: with and without a space before it, a word is two tokens.
# - Encode digits, capital letters, your own language, an emoji. Nothing is unknown, but some things are expensive.
# - Learn from both texts at once, `train([stories, code], 1500)`. Who loses?
# - `len(readers["code"].encode("    " * 20))`: what does code teach about spaces?
