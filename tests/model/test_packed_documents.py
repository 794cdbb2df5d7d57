"""Documents packed into rows give what each gives alone; grown vocabularies keep the old rows."""

import pytest
import torch

from kernels.chunked_loss import IGNORED
from model import GPT, GPTConfig

SMALL = {"vocab_size": 20, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 32}
VARIANTS = {
    "gpt2": {},
    "rotary, grouped heads": {"positions": "rotary", "n_kv_head": 2},
    "window": {"window": 3},
    "value embedding": {"value_embedding": True, "qk_norm": True, "residual_scalars": True},
    "post-norm, sinusoidal": {"norm_place": "post", "positions": "sinusoidal"},
    "checkpointed": {"checkpoint_activations": True},
}
# The lengths of the documents in two rows of 12.
ROWS = ((5, 1, 6), (12,))
DOCUMENTS = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in ROWS])


def model(**changes) -> GPT:
    gpt = GPT(GPTConfig(**SMALL | changes)).double()
    for parameter in gpt.parameters():  # so large that what is attended to matters
        torch.nn.init.normal_(parameter, std=0.3)
    return gpt


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_documents_are_those_alone(variant):
    gpt = model(**VARIANTS[variant])
    x, y = torch.randint(20, (2, 2, 12))
    logits, loss = gpt(x, y, documents=DOCUMENTS)
    packed = torch.autograd.grad(gpt(x, y, documents=DOCUMENTS, with_logits=False)[1], gpt.wte.weight)[0]
    alone, starts = [], [(row, 0, 12) for row in range(2)]
    starts = [(0, 0, 5), (0, 5, 6), (0, 6, 12), (1, 0, 12)]
    for row, start, end in starts:
        part = gpt(x[row : row + 1, start:end])[0]
        alone.append(torch.nn.functional.cross_entropy(part[0], y[row, start:end], reduction="sum"))
        torch.testing.assert_close(logits[row, start:end], part[0], rtol=0, atol=1e-6)
    expected = sum(alone) / 24
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected, gpt.wte.weight)
    torch.testing.assert_close(packed, wanted, rtol=0, atol=1e-6)


def test_without_documents_a_row_sees_all_of_itself():
    gpt = model()
    x = torch.randint(20, (2, 12))
    apart, together = gpt(x, documents=DOCUMENTS)[0], gpt(x)[0]
    assert torch.allclose(apart[1], together[1]) and torch.allclose(apart[0, :5], together[0, :5])
    assert not torch.allclose(apart[0, 6:], together[0, 6:], atol=1e-2)


@pytest.mark.parametrize(
    "changes", [{"layers": "am"}, {"kv_lora_rank": 8, "positions": "rotary"}, {"n_ahead": 1}], ids=str
)
def test_models_that_cannot_keep_documents_apart_refuse(changes):
    gpt = GPT(GPTConfig(**SMALL | {"ssm_head": 16} | changes))
    with pytest.raises(
        ValueError, match="packed documents can be kept apart in layers of plain attention only"
    ):
        gpt(torch.zeros(2, 12, dtype=torch.long), documents=DOCUMENTS)


@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"value_embedding": True}], ids=str)
def test_a_grown_vocabulary_keeps_the_old_rows(changes):
    gpt = GPT(GPTConfig(**SMALL | changes)).eval()
    grown = gpt.with_vocabulary(24)
    x = torch.randint(20, (2, 12))
    assert grown.config.vocab_size == 24 and not grown.training
    for name, old in gpt.state_dict().items():
        kept = grown.state_dict()[name]
        assert torch.equal(kept[: len(old)] if old.dim() else kept, old)
    torch.testing.assert_close(grown(x)[0][..., :20], gpt(x)[0])
    new = grown.wte.weight[20:]
    assert len(new.unique(dim=0)) == 4 and new.std() < 2 * gpt.wte.weight.std()
    assert (grown.lm_head.weight is grown.wte.weight) == gpt.config.tied_head


def test_a_vocabulary_cannot_shrink():
    with pytest.raises(ValueError, match="below that of the model"):
        GPT(GPTConfig(**SMALL)).with_vocabulary(19)


def test_ignored_targets_have_no_part_in_packed_documents():
    gpt = model()
    x, y = torch.randint(20, (2, 2, 12))
    y[0, 3:] = IGNORED
    logits, loss = gpt(x, y, documents=DOCUMENTS)
    kept = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(loss, kept, rtol=0, atol=1e-6)
