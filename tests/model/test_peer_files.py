"""Directories as others write them: what changes the result is honoured as in transformers, or refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import GPT, GPTConfig
from model.pretrained import read_config

transformers = pytest.importorskip("transformers")
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
SIZES = {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture
def gpt2(tmp_path):
    """Return a small GPT-2 of transformers, far from its first weights, saved in tmp_path."""
    config = transformers.GPT2Config(**SIZES, **dict.fromkeys(DROPOUTS, 0.0))
    made = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    made.save_pretrained(tmp_path)
    return made


def configure(directory: Path, *, without=(), **changes) -> None:
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in without}))


def add_head(directory: Path, head) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "lm_head.weight": head(weights["transformer.wte.weight"])}, path, {"format": "pt"})


def assert_logits_of_transformers(directory: Path, batch) -> None:
    theirs = transformers.GPT2LMHeadModel.from_pretrained(directory).eval()
    torch.testing.assert_close(
        GPT.from_pretrained(directory)(batch[0])[0], theirs(batch[0]).logits, rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("without", [(), ("tie_word_embeddings",)], ids=["tied", "silent"])
def test_a_head_in_the_file_that_differs_from_the_embedding_counts(gpt2, tmp_path, batch, without):
    add_head(tmp_path, torch.randn_like)
    configure(tmp_path, without=without)
    assert_logits_of_transformers(tmp_path, batch)
    assert not read_config(tmp_path).tied_head
    with pytest.raises(ValueError, match="have a head that is not the embedding: leave tied_head out"):
        GPT.from_pretrained(tmp_path, tied_head=True)


def test_a_head_in_the_file_that_is_the_embedding_stays_tied(gpt2, tmp_path, batch):
    add_head(tmp_path, torch.clone)
    assert_logits_of_transformers(tmp_path, batch)
    gpt = GPT.from_pretrained(tmp_path)
    assert gpt.config.tied_head and gpt.lm_head.weight is gpt.wte.weight


ALIASES = {
    "n_head": ("num_attention_heads", 2),
    "n_embd": ("hidden_size", 32),
    "n_layer": ("num_hidden_layers", 2),
    "n_positions": ("max_position_embeddings", 32),
}


@pytest.mark.parametrize("name", ALIASES)
def test_second_names_that_transformers_accepts_mean_the_same(gpt2, tmp_path, batch, name):
    alias, value = ALIASES[name]
    configure(tmp_path, without=(name,), **{alias: value})
    assert_logits_of_transformers(tmp_path, batch)


def test_two_names_that_contradict_each_other_are_refused(gpt2, tmp_path):
    configure(tmp_path, num_attention_heads=2)
    with pytest.raises(ValueError, match="has n_head 4 and num_attention_heads 2: leave one of them out"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_norm_epsilon": 0.1},
        {"reorder_and_upcast_attn": True},
        {"activation_function": "gelu_fast"},
        {"activation_function": "gelu_accurate"},
        {"activation_function": "gelu_python_tanh"},
        {"activation_function": "swish"},
        {"n_ctx": 16},
        {"attn_pdrop": 0.3},
        {"without": ("layer_norm_epsilon", "activation_function", "tie_word_embeddings", "n_inner")},
    ],
    ids=str,
)
def test_what_is_honoured_gives_the_logits_of_transformers(gpt2, tmp_path, batch, change):
    configure(tmp_path, **change)
    assert_logits_of_transformers(tmp_path, batch)


@pytest.mark.parametrize(
    "change",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"bits": 4}},
        {"activation_function": "gelu"},
        {"activation_function": "quick_gelu"},
        {"activation_function": "relu"},
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(gpt2, tmp_path, change):
    configure(tmp_path, **change)
    with pytest.raises(ValueError, match=f"does not compute: {next(iter(change))}="):
        GPT.from_pretrained(tmp_path)


def test_every_field_of_theirs_that_changes_logits_is_known(gpt2, tmp_path, batch):
    """Each of GPT2Config's fields, at another value than its own, leaves their logits or is honoured or refused."""
    own = json.loads((tmp_path / "config.json").read_text())
    for name, value in own.items():
        if name in ("model_type", "architectures", "dtype", "transformers_version", *SIZES):
            continue  # sizes and names: without them no weight fits
        other = {bool: lambda v: not v, float: lambda v: v + 0.1, int: lambda v: 7}
        if type(value) not in other:
            continue
        configure(tmp_path, **{**own, name: other[type(value)](value)})
        try:
            ours = GPT.from_pretrained(tmp_path)
        except ValueError as refusal:
            assert name in str(refusal) or name == "tie_word_embeddings", refusal  # no head in the file
            continue
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(ours(batch[0])[0], theirs(batch[0]).logits, rtol=1e-5, atol=2e-5, msg=name)


def test_of_unequal_dropouts_one_is_taken_and_named(gpt2, tmp_path, capsys):
    configure(tmp_path, resid_pdrop=0.2, attn_pdrop=0.3)
    assert GPT.from_pretrained(tmp_path).config.dropout == 0.2
    printed = capsys.readouterr().err
    assert (
        "has resid_pdrop 0.2, embd_pdrop 0.0, attn_pdrop 0.3: training would use 0.2 for all three" in printed
    )
    assert printed.count("\n") == 1
    assert GPT.from_pretrained(tmp_path, dropout=0.5).config.dropout == 0.5
    assert capsys.readouterr().err == ""  # the choice was made


@pytest.mark.parametrize("shards", ["20KB", "5KB"])
def test_weights_in_several_files_are_read(gpt2, tmp_path, batch, shards):
    gpt2.save_pretrained(tmp_path / "many", max_shard_size=shards)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert not (tmp_path / "many" / "model.safetensors").exists()
    assert_logits_of_transformers(tmp_path / "many", batch)


def test_a_shard_that_is_missing_or_does_not_fit_is_named(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    index = tmp_path / "many" / "model.safetensors.index.json"
    last = max((tmp_path / "many").glob("*.safetensors"))
    content = last.read_bytes()
    last.write_bytes(content[:-50])
    with pytest.raises(ValueError, match=rf"{last.name} is not a whole safetensors file"):
        GPT.check_pretrained(tmp_path / "many")
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {last.name}, which .*index.json names: fetch"):
        GPT.check_pretrained(tmp_path / "many")
    last.write_bytes(content)
    for broken in (
        {"weight_map": {"a": "../b.safetensors"}},
        {"weight_map": {}},
        [],
        {"weight_map": {"a": 5}},
    ):
        index.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="has no weight_map from weights to files of its directory"):
            GPT.check_pretrained(tmp_path / "many")


def test_a_head_of_its_own_is_found_in_another_shard(gpt2, tmp_path, batch):
    """The index names the file of each weight; here the head is alone in one."""
    gpt2.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    directory = tmp_path / "many"
    save_file({"lm_head.weight": torch.randn(61, 32)}, directory / "head.safetensors", {"format": "pt"})
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_logits_of_transformers(directory, batch)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "ckpt.pt"])
def test_a_directory_of_pickles_is_refused_with_the_remedy(gpt2, tmp_path, name):
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(FileNotFoundError) as refusal:
        GPT.from_pretrained(tmp_path)
    message = str(refusal.value)
    assert f"only {name}, a pickle" in message and "\n" not in message
    assert f"from_pretrained({str(tmp_path)!r}).save_pretrained(NEW_DIRECTORY)" in message


def test_a_smaller_block_size_crops_the_positions(gpt2, tmp_path, batch):
    """As nanoGPT's crop_block_size: within the smaller context nothing changes."""
    ours = GPT.from_pretrained(tmp_path, block_size=12)
    assert ours.config.block_size == 12 and ours.wpe.weight.shape == (12, 32)
    idx = batch[0][:, :12]
    torch.testing.assert_close(ours(idx)[0], gpt2(idx).logits, rtol=1e-5, atol=2e-5)
    with pytest.raises(ValueError, match="13 tokens is longer than block_size 12"):
        ours(batch[0][:, :13])


def test_a_larger_block_size_is_refused_where_positions_are_learned(gpt2, tiny, tmp_path):
    with pytest.raises(ValueError, match="know 32 positions: choose a block_size of at most that, not 33"):
        GPT.from_pretrained(tmp_path, block_size=33)
    tiny(positions="rotary").save_pretrained(tmp_path / "rotary")
    assert GPT.from_pretrained(tmp_path / "rotary", block_size=64).config.block_size == 64


def test_without_being_asked_positions_must_fit(gpt2, tmp_path):
    configure(tmp_path, n_positions=12)
    with pytest.raises(ValueError, match=r"wpe.weight is \(32, 32\), not \(12, 32\)"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"n_head": 2},
        {"n_kv_head": 2},
        {"mlp": "silu"},
        {"norm_eps": 1e-3},
        {"positions": "none"},
        {"norm": "rmsnorm"},
        {"n_expert": 4},
        {"kv_lora_rank": 8},
        {"layers": "am"},
    ],
    ids=str,
)
def test_a_change_that_would_misread_the_weights_is_refused(gpt2, tmp_path, change):
    (name,) = change
    with pytest.raises(
        ValueError, match=f"{name} is .*, but the weights of .* were trained with .*: leave {name} out"
    ):
        GPT.from_pretrained(tmp_path, **change)


def test_changes_that_leave_the_weights_meaning_are_taken(gpt2, tmp_path):
    changes = {"dropout": 0.2, "checkpoint_activations": True, "window": 5, "n_head": 4}
    config = GPT.from_pretrained(tmp_path, **changes).config
    assert {name: getattr(config, name) for name in changes} == changes
    assert isinstance(config, GPTConfig)


def test_batched_pipelines_of_transformers_run_on_an_export(babble, tmp_path):
    from model.__main__ import main

    main(["export", str(babble), str(tmp_path / "hf")])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["Once there was a", "One", "Lily had a small red ball and"]
    options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    alone = [pipe(prompt, **options)[0]["generated_text"] for prompt in prompts]
    together = [found[0]["generated_text"] for found in pipe(prompts, batch_size=3, **options)]
    assert together == alone
