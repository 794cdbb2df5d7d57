"""sample.py as a user runs it, on a model trained for a moment."""

import json
import shutil

import pytest
import tokenizers

import sample
from bpe import Tokenizer
from inference.scoring import score_texts
from inference.text import TextModel


def run_sample(run, capsys, *flags: str) -> str:
    length = () if "--score" in flags else ("--max-new-tokens", "40")
    sample.main(["--run", str(run), "--seed", "1234", *length, *flags])
    return capsys.readouterr().out


def test_samples_start_with_the_prompt(babble, capsys):
    text = run_sample(babble, capsys, "--prompt", "One day", "--num-samples", "2")
    assert text.count("One day") >= 2
    assert "--- sample 2 ---\nOne day" in text


def test_the_seed_decides(babble, capsys):
    first = run_sample(babble, capsys, "--seed", "5", "--temperature", "1.5")
    assert first == run_sample(babble, capsys, "--seed", "5", "--temperature", "1.5")
    assert first != run_sample(babble, capsys, "--seed", "6", "--temperature", "1.5")


def test_without_a_seed_the_stories_are_new_each_time(babble, capsys):
    output = []
    for _ in range(2):
        sample.main(["--run", str(babble), "--max-new-tokens", "40", "--temperature", "1.5"])
        output.append(capsys.readouterr().out)
    assert output[0] != output[1]


def test_temperature_zero_is_greedy_and_so_is_top_one(babble, capsys):
    greedy = run_sample(babble, capsys, "--temperature", "0", "--num-samples", "1")
    assert greedy == run_sample(babble, capsys, "--temperature", "0", "--num-samples", "1", "--seed", "9")
    assert greedy == run_sample(babble, capsys, "--top-k", "1", "--num-samples", "1", "--temperature", "2")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--temperature", "-0.5"], "temperature is -0.5"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-k", "0"], "top_k is 0"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--min-p", "nan"], "min_p is nan"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["--stop", ""], "a stop string is empty"),
        (["--num-samples", "0"], "num_samples is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--beams", "0"], "beams is 0"),
        (["--prompt-file", "no/such/file"], "no/such/file"),
        (["--prompt", "a", "--prompt-file", "b"], "both --prompt and --prompt-file"),
        (["--interactive", "--show-probs"], "--interactive and --show-probs exclude each other"),
        (["--interactive", "--ignore-eot"], "--interactive knows no --ignore-eot"),
        (["--beams", "2", "--stop", "x"], "--beams knows no --stop"),
        (["--beams", "2", "--temperature", "1"], "--beams knows no --temperature"),
        (["--beams", "2", "--compile"], "--beams knows no --compile"),
        (["--score", "a", "--prompt", "b"], "--score knows no --prompt"),
        (["--score", "a", "--max-new-tokens", "1"], "--score knows no --max-new-tokens"),
        (["--interactive", "--prompt-file", "b"], "--interactive knows no --prompt-file"),
        (["--interactive", "--num-samples", "2"], "--interactive knows no --num-samples"),
        (["--show-probs", "--batch-size", "2"], "--show-probs knows no --batch-size"),
        (["--batch-size", "2"], "--batch-size has no effect without --out"),
        (["--score", ""], "an empty text to score"),
        (["--prompt", "once upon a time " * 50], "give a shorter prompt"),
        (["--run", "no/such/run"], "holds no trained model"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_a_mistake_is_one_line(babble, refused, flags, complaint):
    assert complaint in refused(sample.main, "--run", str(babble), *flags)


@pytest.mark.parametrize("flag", ["--prompt-file", "--score"])
def test_a_file_that_is_no_utf8_is_named(babble, refused, tmp_path, flag):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "latin is not UTF-8" in refused(sample.main, "--run", str(babble), flag, str(tmp_path / "latin"))


def test_a_prompt_that_is_no_utf8_can_be_written_down(babble, capsys, tmp_path):
    flags = ["--num-samples", "1", "--max-new-tokens", "2", "--out", str(tmp_path / "samples")]
    run_sample(
        babble, capsys, "--prompt", "caf\udce9", *flags
    )  # as Python hands over the byte E9 of a command line
    assert json.loads((tmp_path / "samples").read_text())["prompt"] == "caf\ufffd"


def test_damaged_weights_are_refused_with_their_name(babble, refused, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_bytes((babble / "best" / "config.json").read_bytes())
    (tmp_path / "best" / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "tokenizer.json").write_bytes((babble / "tokenizer.json").read_bytes())
    assert "model.safetensors" in refused(sample.main, "--run", str(tmp_path))


def test_a_run_that_stopped_before_its_first_evaluation_says_how_to_go_on(babble, refused, tmp_path):
    for name in ("config.toml", "tokenizer.json"):
        (tmp_path / name).write_bytes((babble / name).read_bytes())
    assert f"continue it with python -m train --run {tmp_path} --resume" in refused(
        sample.main, "--run", str(tmp_path)
    )


def test_the_runs_tokenizer_is_the_datas(babble, corpus):
    assert Tokenizer.load(babble / "tokenizer.json").vocab == Tokenizer.load(corpus / "tokenizer.json").vocab


def test_weights_of_another_config_and_a_tokenizer_of_another_model_are_refused(
    babble, refused, tmp_path, capsys
):
    shutil.copytree(babble, tmp_path / "other")
    path = tmp_path / "other" / "best" / "config.json"
    path.write_text(path.read_text().replace('"n_layer": 1', '"n_layer": 2'))
    assert "missing h.1.attn" in refused(sample.main, "--run", str(tmp_path / "other"))
    path.write_text((babble / "best" / "config.json").read_text())
    Tokenizer([(bytes([i]), b"x") for i in range(200)]).save(tmp_path / "other" / "tokenizer.json")
    assert "another model's tokenizer" in refused(sample.main, "--run", str(tmp_path / "other"))
    (tmp_path / "other" / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in refused(sample.main, "--run", str(tmp_path / "other"))
    (tmp_path / "other" / "best" / "model.safetensors").unlink()
    (tmp_path / "other" / "tokenizer.json").write_bytes((babble / "tokenizer.json").read_bytes())
    assert "holds no model.safetensors" in refused(sample.main, "--run", str(tmp_path / "other"))


def test_an_empty_prompt_starts_from_end_of_text_and_a_directory_of_weights_will_do(babble, capsys, tmp_path):
    shutil.copytree(babble / "best", tmp_path / "hf")
    shutil.copy(babble / "tokenizer.json", tmp_path / "hf")
    assert run_sample(tmp_path / "hf", capsys) == run_sample(babble, capsys)


def test_a_sample_ends_before_a_stop_string(babble, capsys):
    whole = run_sample(babble, capsys, "--num-samples", "1", "--ignore-eot")
    text = whole.split("---\n")[1].strip("\n")
    middle = text[len(text) // 2 :][:3]
    stopped = run_sample(babble, capsys, "--num-samples", "1", "--ignore-eot", "--stop", middle)
    assert stopped.split("---\n")[1].strip("\n") == text[: text.index(middle)].strip("\n")


def test_prompts_of_a_file_are_written_as_json_lines_that_single_samples_repeat(babble, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("One day\n\nTom was a\n")
    flags = ["--num-samples", "2", "--temperature", "1.2", "--stop", "e."]
    output = run_sample(
        babble, capsys, "--prompt-file", str(tmp_path / "prompts.txt"),
        "--out", str(tmp_path / "samples.jsonl"), "--batch-size", "4", *flags,
    )  # fmt: skip
    assert "6 samples written" in output
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == ["One day", "One day", "", "", "Tom was a", "Tom was a"]
    for number, record in enumerate(records):
        assert record["seed"] == 1234 + number % 2
        alone = run_sample(
            babble,
            capsys,
            "--prompt",
            record["prompt"],
            *flags,
            "--seed",
            str(record["seed"]),
            "--num-samples",
            "1",
        )
        assert alone == f"--- sample 1 ---\n{record['prompt']}{record['text']}\n\n"
    assert {r["end"] for r in records} <= {"length", "stop", "end"}
    assert all(r["tokens"] == 40 for r in records if r["end"] == "length")


def test_beam_search_prints_its_best(babble, capsys):
    text = run_sample(babble, capsys, "--beams", "4", "--num-samples", "2", "--prompt", "One")
    assert text.count("--- beam") == 2 and text.count("\nOne") == 2


def test_probabilities_and_scores_are_shown(babble, capsys, tmp_path):
    shown = run_sample(babble, capsys, "--show-probs", "--num-samples", "1", "--prompt", "One day")
    assert "instead" in shown and "probability" in shown
    (tmp_path / "lines.txt").write_text("One day\n\nday One\n")
    scored = run_sample(babble, capsys, "--score", str(tmp_path / "lines.txt"), "a [bold]text[/bold]")
    assert "bits per byte" in scored and scored.count("day") == 2
    assert "[bold]" in scored


def test_scores_are_written_beside_what_the_rows_hold(babble, capsys, tmp_path, refused):
    """Lines and JSON lines with the numbers that are printed; a text that is empty has none."""
    rows = [
        {"text": "One day", "url": "a"},
        {"text": "", "url": "b"},
        {"text": "day \ud800 <", "bits_per_byte": 0},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lines.txt").write_text("One day\n\nday One\n")
    sources = [str(tmp_path / "rows.jsonl"), str(tmp_path / "lines.txt"), "One day"]
    out = tmp_path / "new" / "scored.jsonl"
    assert "6 scored texts" in run_sample(babble, capsys, "--score", *sources, "--out", str(out))
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in found] == ["One day", "", "day ? <", "One day", "day One", "One day"]
    assert [row.get("url") for row in found[:3]] == ["a", "b", None]
    assert found[1] == {**rows[1], "perplexity": None, "bits_per_byte": None}
    (expected,) = score_texts(TextModel.load(babble), ["One day"])
    for row in (found[0], found[3], found[5]):
        assert row["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
        assert row["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-4)
    assert found[2]["bits_per_byte"] > 0

    (tmp_path / "bad.jsonl").write_text('{"text": "One day"}\n{"body": "One day"}\n')
    for name, complaint in (
        ("bad.jsonl", "line 2 holds no text in 'text'"),
        ("none.jsonl", "nothing to score"),
    ):
        (tmp_path / "none.jsonl").touch()
        flags = ("--run", str(babble), "--score", str(tmp_path / name), "--out", str(tmp_path / "x.jsonl"))
        assert complaint in refused(sample.main, *flags)
        assert not (tmp_path / "x.jsonl").exists()


def test_a_story_told_in_turns(babble, capsys, monkeypatch):
    lines = iter(["One day", "/undo", "/set top_p 7", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    output = run_sample(babble, capsys, "--interactive")
    assert "error: top_p is 7.0" in output and "/help" in output


def test_special_tokens_in_a_prompt_are_tokens_if_asked_for(babble):
    theirs = tokenizers.Tokenizer.from_file(str(babble / "tokenizer.json"))
    text = "One day.<|endoftext|>Two"
    expected = theirs.encode(text).ids  # theirs always reads them as tokens
    assert TextModel.load(babble, "cpu", special_tokens=True).encode(text)[1:] == expected
    assert TextModel.load(babble, "cpu").encode(text)[1:] != expected


def test_the_flag_for_special_tokens_reaches_the_prompt(babble, capsys):
    flags = ["--prompt", "<|endoftext|>", "--num-samples", "1", "--max-new-tokens", "1", "--show-probs"]
    assert "'<|endoftext|>'" in run_sample(babble, capsys, *flags, "--special-tokens")
    assert "'<|endoftext|>'" not in run_sample(babble, capsys, *flags)
