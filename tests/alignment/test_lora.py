"""LoRA: PEFT's files read and written, merging once, tied embeddings, new rows, layers of any layout."""

import json

import pytest
import torch
from safetensors.torch import load_file

from alignment import lora
from alignment.lora import LoRA
from model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=40, block_size=16, n_layer=2, n_head=2, n_embd=16)
IDS = torch.arange(24).view(2, 12) + 15  # holds 37 and 38, whose rows are trained
TARGETS = ("c_attn", "mlp.c_proj")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # within peft


def adapted(model: torch.nn.Module, tokens=(37, 38)) -> lora.Adapters:
    """Attach adapters to a model and give every trained tensor random values."""
    adapters = lora.attach(model, LoRA(4, 8.0, TARGETS), tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return adapters


@pytest.fixture
def gpt() -> GPT:
    return GPT(CONFIG).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        found = model(IDS)
    return found[0] if isinstance(found, tuple) else found.logits


def test_training_begins_at_the_base(gpt):
    before = logits(gpt)
    lora.attach(gpt, LoRA(4, 8.0, TARGETS), [37])
    assert torch.equal(logits(gpt), before)


def test_only_adapters_and_new_rows_are_trained(gpt):
    adapted(gpt)
    trained = {name.rpartition(".")[2] for name, p in gpt.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B", "rows"}
    assert sum(p.numel() for p in gpt.parameters() if p.requires_grad) == 2 * 4 * (16 + 48 + 64 + 16) + 2 * 16
    gpt(IDS, IDS)[1].backward()
    assert all((p.grad is not None) == p.requires_grad for p in gpt.parameters())


def test_the_head_reads_the_trained_rows_of_a_tied_embedding(gpt):
    adapted(gpt)
    assert torch.equal(gpt.lm_head.weight, gpt.wte.weight)
    gpt(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[37]]))[1].backward()  # 37 is a target alone
    assert gpt.wte.parametrizations.weight[0].rows.grad[0].abs().sum() > 0


def test_other_rows_stay_bit_equal(gpt):
    before = gpt.wte.weight.detach().clone()
    adapted(gpt).merge()
    assert torch.equal(gpt.wte.weight[:37], before[:37]) and not torch.equal(gpt.wte.weight[37], before[37])


def test_merging_gives_equal_logits_once(gpt):
    adapters = adapted(gpt)
    before = logits(gpt)
    adapters.merge()
    assert torch.equal(logits(gpt), before)
    assert gpt.lm_head.weight is gpt.wte.weight
    assert gpt.state_dict().keys() == GPT(CONFIG).state_dict().keys()
    with pytest.raises(ValueError, match="merged already"):
        adapters.merge()


def test_saved_adapters_load_into_their_base_and_not_into_merged_weights(gpt, tmp_path):
    base = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    adapters = adapted(gpt)
    adapters.save(tmp_path)
    before = logits(gpt)
    again = GPT(CONFIG).eval()
    again.load_state_dict(base)
    lora.load(again, tmp_path)
    assert torch.equal(logits(again), before)
    adapters.merge()
    with pytest.raises(ValueError, match="merged into them already"):
        lora.load(gpt, tmp_path)


@pytest.mark.parametrize("targets", [TARGETS, ("all-linear",)])
def test_peft_reads_our_adapters_and_merges_to_our_logits(gpt, tmp_path, targets):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    gpt.save_pretrained(tmp_path / "base")
    adapters = lora.attach(gpt, LoRA(4, 8.0, targets), [37, 38])
    for parameter in gpt.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapters.save(tmp_path)
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(gpt), atol=1e-5)
    assert torch.allclose(logits(theirs.merge_and_unload()), logits(gpt), atol=1e-5)


@pytest.mark.parametrize("targets", [["c_attn", "mlp.c_proj"], "all-linear", r".*h\.1\..*c_fc"])
def test_reads_what_peft_wrote(gpt, tmp_path, targets):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    gpt.save_pretrained(tmp_path / "base")
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=True, trainable_token_indices=[37, 38]
    )
    theirs = peft.get_peft_model(base, config).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    lora.load(gpt, tmp_path)
    assert torch.allclose(logits(gpt), logits(theirs), atol=1e-5)


def test_a_conv1d_is_adapted_as_peft_adapts_it(gpt, tmp_path):
    """The same adapters on our Linear layers and on transformers' Conv1D, which stores (in, out), give equal logits."""
    transformers = pytest.importorskip("transformers")
    gpt.save_pretrained(tmp_path / "base")
    adapted(gpt).save(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
    lora.load(theirs, tmp_path)
    assert torch.allclose(logits(theirs), logits(gpt), atol=1e-5)


def test_the_config_has_pefts_names(gpt, tmp_path):
    adapted(gpt).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (4, 8.0, True)
    assert config["trainable_token_indices"] == [37, 38]
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    assert shapes["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"] == (4, 16)
    assert shapes["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"] == (48, 4)
    assert shapes["base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"] == (2, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_dora": True}, "use_dora true is not supported"),
        ({"r": 3}, r"lora_A.weight is \(4, 16\), the model needs \(3, 16\)"),
        ({"target_modules": ["c_fc"]}, "lacks base_model|has an unknown base_model"),
        ({"target_modules": ["c_nothing"]}, "'c_nothing' is no linear layer"),
        ({"trainable_token_indices": [99]}, "token 99 has no row"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(gpt, tmp_path, change, message):
    adapted(gpt).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        lora.load(GPT(CONFIG), tmp_path)


def test_a_tied_head_is_no_target(gpt):
    with pytest.raises(ValueError, match="lm_head is tied to wte"):
        lora.attach(gpt, LoRA(4, 8.0, ("lm_head",)))


def test_an_untied_head_is_a_target():
    model = GPT(
        GPTConfig(vocab_size=40, block_size=16, n_layer=1, n_head=2, n_embd=16, tied_head=False)
    ).eval()
    adapters = lora.attach(model, LoRA(2, 4.0, ("lm_head", "c_attn")), [37])
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    before = logits(model)
    adapters.merge()
    assert torch.equal(logits(model), before)


def test_adapters_on_adapters_are_refused(gpt):
    adapted(gpt)
    with pytest.raises(ValueError, match="has adapters already"):
        lora.attach(gpt, LoRA(4, 8.0, TARGETS))
