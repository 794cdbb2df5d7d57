"""GGUF and ONNX: what the programs that they are for make of them."""

import json
import shutil

import numpy as np
import pytest
import torch

from benchmarks import llama_cpp
from bpe import Tokenizer
from model import GPT
from model.__main__ import main

LLAMA = {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False, "n_inner": 64}
KINDS = {
    "gpt2": {},
    "llama": {**LLAMA, "n_kv_head": 2},
    "own head": {**LLAMA, "tied_head": False},
    "qwen3": {**LLAMA, "qk_norm": True, "n_kv_head": 2},
    "mixtral": {**LLAMA, "n_expert": 4, "n_kv_head": 2},
}
needs_llama_cpp = pytest.mark.skipif(
    llama_cpp.folder() is None,
    reason=f"{llama_cpp.VARIABLE} names no folder with libllama: see benchmarks/llama_cpp.py",
)
gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install gguf")


@pytest.fixture(params=KINDS)
def run(request, babble, tiny, tmp_path):
    """A run of random weights with the tokenizer of a trained one; heads of 16 numbers, rows of 32."""
    vocab_size = GPT.from_pretrained(babble / "best").config.vocab_size
    gpt = tiny(**KINDS[request.param], vocab_size=vocab_size, block_size=256).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    gpt.save_pretrained(tmp_path / "run" / "best")
    shutil.copy(babble / "tokenizer.json", tmp_path / "run")
    return tmp_path / "run"


def exported(run, precision="f32"):
    path = run.parent / f"{precision}.gguf"
    main(["export", str(run), "--to", "gguf", str(path), "--type", precision])
    return path


@pytest.mark.parametrize("precision, error", [("f32", 0.0), ("f16", 1e-3), ("q8_0", 1e-2)])
def test_the_package_reads_the_weights_back(run, precision, error):
    gpt = GPT.from_pretrained(run / "best")
    reader = gguf.GGUFReader(exported(run, precision))
    found = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    assert np.abs(found["token_embd.weight"] - gpt.wte.weight.detach().numpy()).max() <= error
    has_experts = gpt.config.n_expert is not None
    inner = gpt.h[1].mlp.experts[2].c_fc if has_experts else gpt.h[1].mlp.c_fc
    up = found["blk.1.ffn_up_exps.weight"][2] if has_experts else found["blk.1.ffn_up.weight"]
    assert np.abs(up - inner.weight.detach().numpy()).max() <= error
    names = ["qkv"] if "blk.0.attn_qkv.weight" in found else ["q", "k", "v"]
    if gpt.config.qk_norm:  # its halves side by side again
        for name in ("q", "k"):
            heads = found[f"blk.0.attn_{name}.weight"].reshape(-1, 2, gpt.config.head_dim // 2, 32)
            found[f"blk.0.attn_{name}.weight"] = heads.swapaxes(1, 2).reshape(-1, 32)
    joined = np.concatenate([found[f"blk.0.attn_{name}.weight"] for name in names])
    assert np.abs(joined - gpt.h[0].attn.c_attn.weight.detach().numpy()).max() <= error


def add_chat(run):
    """Add a chat template and its tokens to a run."""
    from inference.chat import ChatTemplate, add_chat_tokens

    tokenizer = add_chat_tokens(Tokenizer.load(run / "tokenizer.json"))
    gpt = GPT.from_pretrained(run / "best").with_vocabulary(tokenizer.vocab_size)
    gpt.save_pretrained(run / "best")
    ChatTemplate(tokenizer).save(run, gpt.config.block_size)
    return tokenizer


def test_the_chat_template_travels_along(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    from inference.chat import ChatTemplate, Message

    tokenizer = add_chat(run)
    main(["export", str(run), "--to", "hf", str(tmp_path / "hf")])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [{"role": "user", "content": "Hi"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == ChatTemplate.load(run).prompt([Message("user", "Hi")])
    fields = gguf.GGUFReader(exported(run)).fields
    assert "generation" not in fields["tokenizer.chat_template"].contents().replace(
        "add_generation_prompt", ""
    )
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.special_tokens["<|end|>"]
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["bos_token_id"] is not None


@needs_llama_cpp
def test_llama_cpp_computes_our_logits_and_says_our_words(run):
    gpt = GPT.from_pretrained(run / "best")
    theirs = llama_cpp.LlamaCpp(llama_cpp.folder(), exported(run), context=256, exact=True)
    prompt = torch.randint(0, gpt.config.vocab_size - 1, (30,)).tolist()
    found = theirs.read([prompt], 0, every=True)
    ours = gpt(torch.tensor([prompt]))[0][0].detach().numpy()
    # its GELU is a table of float16
    assert np.abs(found - ours).max() < (5e-3 if gpt.config.mlp == "gelu" else 1e-4) * np.abs(ours).max()
    from model.generate import stream

    assert theirs.greedy([prompt], 200)[0] == list(stream(gpt, prompt, 200, temperature=0))
    theirs.close()


@needs_llama_cpp
def test_llama_cpp_reads_texts_as_we_do(run, corpus):
    """1,000 pieces of the corpus, and the places where byte-level tokenizers part."""
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    theirs = llama_cpp.LlamaCpp(llama_cpp.folder(), exported(run), context=256)
    text = tokenizer.decode(np.fromfile(corpus / "val.bin", "<u2")[:20_000].tolist())
    texts = [text[i : i + 40] for i in range(0, 990 * 20, 20)]
    texts += [
        "",
        " ",
        "\n\n  x",
        "it's  DON'T 12345 ½ ²",
        "naïve 日本語 🎉🏽 e\u0301",
        "<|endoftext|>",
        "a\r\n\tb  ",
        "\u00a0\u2003x",
    ]
    for each in texts:
        assert theirs.tokenize(each) == tokenizer.encode(each), each
    theirs.close()


def test_what_llama_cpp_does_not_compute_is_refused(babble, tiny, tmp_path, refused):
    vocab_size = GPT.from_pretrained(babble / "best").config.vocab_size
    tiny(window=8, vocab_size=vocab_size).save_pretrained(tmp_path / "run" / "best")
    shutil.copy(babble / "tokenizer.json", tmp_path / "run")
    error = refused(main, "export", str(tmp_path / "run"), "--to", "gguf", str(tmp_path / "out.gguf"))
    assert "this one is none of these" in error and not (tmp_path / "out.gguf").exists()
    content = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "NFC"}
    (tmp_path / "run" / "tokenizer.json").write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "run" / "best")
    shutil.copytree(babble / "best", tmp_path / "run" / "best")
    error = refused(main, "export", str(tmp_path / "run"), "--to", "gguf", str(tmp_path / "out.gguf"))
    assert "does not split text as" in error
    assert "leave it out" in refused(main, "export", str(babble), str(tmp_path / "x"), "--type", "f16")


@pytest.mark.slow  # torch's exporter takes its time
@pytest.mark.parametrize(
    "run", [kind for kind in KINDS if kind != "mixtral"], indirect=True
)  # it knows no experts
def test_onnxruntime_computes_our_logits(run):
    pytest.importorskip(
        "onnxscript", reason="the package onnxscript is not installed: pip install onnxscript"
    )
    onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    gpt = GPT.from_pretrained(run / "best")
    main(["export", str(run), "--to", "onnx", str(run.parent / "model.onnx")])
    session = onnxruntime.InferenceSession(str(run.parent / "model.onnx"))
    for batch, tokens in ((1, 1), (3, 20)):
        ids = torch.randint(0, gpt.config.vocab_size, (batch, tokens + 3))
        expected = gpt(ids)[0].detach().numpy()
        shape = (batch, gpt.config.kv_heads, 0, gpt.config.head_dim)
        past = {each.name: np.zeros(shape, np.float32) for each in session.get_inputs()[1:]}
        first = 0
        for count in (tokens, 1, 2):  # a prompt, a step, and two tokens at once
            part = ids[:, first : first + count].numpy()
            logits, *present = session.run(None, {"input_ids": part, **past})
            past = dict(zip(past, present, strict=True))
            assert np.abs(logits - expected[:, first : first + count]).max() < 1e-4
            first += count
