"""Write with a trained model, one token at a time: python basics/sample.py my.txt "Once upon"

It reads the weights that `python basics/train.py my.txt` left in my.safetensors. The fast rooms that grew from this
file are model/generate.py (a cache of keys and values, more rules, batches) and sample.py.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs from anywhere

from basics.gpt import GPT, GPTConfig


def probabilities(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Return the probabilities (V,) of the next id. Below 1 the temperature sharpens; only the top k ids stay."""
    if temperature == 0:  # greedy: the likeliest id always
        return (torch.arange(len(logits)) == logits.argmax()).float()  # (V,)
    if top_k is not None:
        smallest = logits.topk(min(top_k, len(logits))).values[-1]  # the k-th largest logit
        logits = logits.masked_fill(logits < smallest, -torch.inf)  # (V,)
    return (logits / temperature).softmax(-1)  # (V,)


@torch.no_grad()
def generate(
    model: GPT, ids: list[int], count: int, temperature: float = 0.8, top_k: int | None = None, seed: int = 0
) -> list[int]:
    """Return `count` new ids that continue `ids`, of which the model sees the last block_size."""
    generator, model = torch.Generator().manual_seed(seed), model.eval()
    ids = list(ids)
    for _ in range(count):
        context = torch.tensor([ids[-model.config.block_size :]])  # (1, T)
        logits = model(context)[0, -1]  # (1, T, V) -> (V,): what comes after the last token
        ids.append(int(torch.multinomial(probabilities(logits, temperature, top_k), 1, generator=generator)))
    return ids[-count:] if count else []


def main() -> None:
    """Continue a prompt at three temperatures."""
    if len(sys.argv) < 2:
        sys.exit('usage: python basics/sample.py my.txt ["Once upon"]')
    weights = Path(sys.argv[1]).with_suffix(".safetensors")
    if not weights.is_file():
        sys.exit(f"there is no {weights}: python basics/train.py {sys.argv[1]} makes it")
    model = GPT(GPTConfig())
    model.load_state_dict(load_file(weights))
    prompt = (sys.argv[2] if len(sys.argv) > 2 else "\n").encode()
    for temperature in (0.0, 0.7, 1.0):
        told = generate(model, list(prompt), 200, temperature, top_k=40)
        print(f"--- temperature {temperature}\n{(prompt + bytes(told)).decode(errors='replace')}")


if __name__ == "__main__":
    main()
