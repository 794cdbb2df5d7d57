"""The picture of the rules that draw a token."""

from pathlib import Path

import torch

from inference.run import load_tokenizer
from model import GPT
from model.generate import Rules
from scripts.pictures.svg import Picture

PROMPT = (
    "Once there was a dreamy boy named Tim. Most of all, he liked to wear odd socks. One gray and gusty morning, Tim "
    "was outside when the first cold gust came. With a roar, a storm began to rage. Tim put both hands over his ears, "
    'but it was still so loud.\n\nHis mom lit the fire. "Shall we play cards?" asked Mom. They had so much fun that '
    "they hardly noticed when the storm went away. Tim"
)
RULES = {
    "T = 1": Rules(),
    "T = 0.5": Rules(temperature=0.5),
    "T = 2": Rules(temperature=2),
    "top-k 3": Rules(top_k=3),
    "top-p 0.8": Rules(top_p=0.8),
}


@torch.no_grad()
def rules(run: Path) -> Picture:
    """Show the likeliest next tokens of a trained model, and their probabilities under each rule."""
    gpt, tokenizer = GPT.from_pretrained(run / "best"), load_tokenizer(run)
    ids = tokenizer.encode("<|endoftext|>" + PROMPT, allowed_special="all")
    logits = gpt(torch.tensor([ids[-gpt.config.block_size :]]))[0][0, -1]  # (V,)
    likeliest = logits.topk(10).indices
    picture = Picture(640, 290, "The ten likeliest next tokens, and their probabilities under five rules")
    for row, token in enumerate(likeliest.tolist()):
        picture.text(82, 60 + 22 * row, tokenizer.decode([token]).strip(), "s", "end")
    drawn = {name: rule.probabilities(logits)[likeliest].tolist() for name, rule in RULES.items()}
    scale = 72 / max(max(ps) for ps in drawn.values())
    for number, (name, ps) in enumerate(drawn.items()):
        left = 92 + 110 * number
        picture.text(left, 20, name, "strong")
        picture.path([(left, 40), (left, 264)], "line")
        for row, p in enumerate(ps):
            y = 45 + 22 * row
            if p > 0:
                picture.rect(left, y, max(scale * p, 1), 17, "a" if number == 0 else "b", 2)
            picture.text(left + scale * p + 5, y + 13, f"{100 * p:.0f}" if p >= 0.005 else "·", "s m")
    picture.text(8, 284, "percent; “… noticed when the storm went away. Tim” by a quickstart model", "s m")
    return picture
