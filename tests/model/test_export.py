"""python -m model export: what it writes is read by transformers, and by sample.py as before."""

import json
import shutil

import pytest
import torch

import sample
from model import GPT
from model.__main__ import main


def told(directory, capsys):
    capsys.readouterr()
    sample.main(
        ["--run", str(directory), "--temperature", "0", "--max-new-tokens", "40", "--num-samples", "1"]
    )
    return capsys.readouterr().out


def test_transformers_says_what_the_run_says(babble, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    main(["export", str(babble), "--to", "hf", str(tmp_path / "hf")])
    assert "for transformers and sample.py" in capsys.readouterr().out
    gpt2 = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompt = torch.tensor([[tokenizer.bos_token_id]])
    written = gpt2.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False
    )
    theirs = tokenizer.decode(written[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert told(babble, capsys) == told(tmp_path / "hf", capsys) == f"--- sample 1 ---\n{theirs}\n\n"


def test_gpt2s_own_two_files_are_a_tokenizer_too(babble, tmp_path, capsys):
    from bpe import Tokenizer

    main(["export", str(babble), str(tmp_path / "hf")])
    Tokenizer.load(tmp_path / "hf" / "tokenizer.json").save_gpt2(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    assert told(tmp_path / "hf", capsys) == told(babble, capsys)


def test_a_model_of_our_own_kind_says_so(babble, tiny, tmp_path, capsys):
    vocab_size = GPT.from_pretrained(babble / "best").config.vocab_size
    tiny(norm="rmsnorm", vocab_size=vocab_size).save_pretrained(tmp_path / "run" / "best")
    (tmp_path / "run" / "tokenizer.json").write_bytes((babble / "tokenizer.json").read_bytes())
    main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert "GPT-2's code cannot run it" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "slm"
    assert told(tmp_path / "out", capsys) == told(tmp_path / "run", capsys)


def test_nothing_is_overwritten_and_no_run_is_named(babble, refused, tmp_path):
    assert "is there already" in refused(main, "export", str(babble), str(tmp_path))
    assert "tokenizer.json" in refused(main, "export", str(tmp_path), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_tokenizer_of_a_wider_model_is_refused(babble, refused, tmp_path):
    from bpe import Tokenizer

    shutil.copytree(babble, tmp_path / "run")
    tokenizer = Tokenizer.load(babble)
    tokenizer.with_special_tokens(["<new>"]).save(tmp_path / "run" / "tokenizer.json")
    complaint = refused(main, "export", str(tmp_path / "run"), str(tmp_path / "hf"))
    assert f"has {len(tokenizer) + 1} tokens, the model only {len(tokenizer)}" in complaint
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("names", [["<stop>"], ["<|endoftext|>", "<stop>"], ["</s>"]])
def test_the_tokens_roles_are_those_of_the_tokenizer(tiny, names, tmp_path):
    """A generation of transformers ends where documents did in training."""
    transformers = pytest.importorskip("transformers")
    from bpe import Tokenizer

    tokenizer = Tokenizer([(b"a", b"b")], names, end_of_text=names[-1])
    tokenizer.save(tmp_path / "tokenizer.json")
    tiny(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "hf", tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.eos_token == theirs.bos_token == theirs.pad_token == names[-1]
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "hf", "config.json")
    assert generation.eos_token_id == theirs.eos_token_id == tokenizer.special_tokens[names[-1]]


def test_the_end_of_text_survives_a_save_by_transformers(tiny, tmp_path):
    transformers = pytest.importorskip("transformers")
    from bpe import Tokenizer
    from inference.run import load_tokenizer

    tokenizer = Tokenizer([(b"a", b"b")], ["<user>", "<stop>"], end_of_text="<stop>")
    tokenizer.save(tmp_path / "tokenizer.json")
    tiny(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "hf", tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs(["a", "ab ab"], padding=True)
    theirs.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.end_of_text == theirs.eos_token == "<stop>"
    assert again.encode("ab<stop>", "all") == theirs("ab<stop>").input_ids
