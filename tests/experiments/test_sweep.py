"""python -m experiments sweep: a run for every setting and seed, once, whatever stops it."""

import dataclasses
import json
import re
import shutil

import pytest

from experiments import sweep
from experiments.__main__ import main
from training import failures, loop
from training.config import save_config


@pytest.fixture
def preset(tiny, tmp_path) -> str:
    """Return the tiny configuration as a preset."""
    save_config(dataclasses.replace(tiny, run=tmp_path / "p", steps=4, eval_every=4, coherence_stories=1))
    text = (tmp_path / "p" / "config.toml").read_text()
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


def test_a_sweep_trains_the_grid_once_and_goes_on(preset, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(
        loop, "train", lambda config, train=loop.train: (trained.append(config), train(config))
    )
    argv = ["sweep", preset, "--grid", "lr=1e-4,1e-2", "--seeds", "2", "--out", str(tmp_path / "sweep")]
    main(argv)
    assert [(c.learning_rate, c.seed) for c in trained] == [(1e-4, 1), (1e-4, 2), (1e-2, 1), (1e-2, 2)]
    rows = json.loads((tmp_path / "sweep" / "table.json").read_text())
    assert [row["setting"] for row in rows] == ["learning_rate=1e-2", "learning_rate=1e-4"]  # best first
    assert rows[0]["mean"] == pytest.approx(sum(rows[0]["losses"]) / 2)
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")

    unfinished = tmp_path / "sweep" / "learning_rate=1e-2" / "seed-2"
    (unfinished / "report.json").unlink()
    trained.clear()
    main(argv)
    assert [(c.run_directory, c.resume) for c in trained] == [(unfinished, True)]
    assert json.loads((tmp_path / "sweep" / "table.json").read_text()) == rows


def test_a_sweep_begins_anew_what_was_killed_before_its_first_checkpoint(preset, tmp_path):
    argv = ["sweep", preset, "--out", str(tmp_path / "sweep")]
    main(argv)
    rows = (tmp_path / "sweep" / "table.json").read_text()
    run = tmp_path / "sweep" / "preset" / "seed-1"
    for left in (["tokenizer.json"], ["tokenizer.json", "config.toml", "log.jsonl"]):
        for entry in run.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in left:
                entry.unlink()
        main(argv)
        assert (tmp_path / "sweep" / "table.json").read_text() == rows


def test_a_sweep_goes_on_where_a_setting_diverges(preset, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    argv = ["sweep", preset, "--grid", "lr=1e30,1e-3", "--seeds", "2", "--out", str(folder)]
    main(argv)
    shown = capsys.readouterr().out
    assert "not finite" in (folder / "learning_rate=1e30" / "seed-2" / "diverged.txt").read_text()
    best, worst = json.loads((folder / "table.json").read_text())
    assert best["setting"] == "learning_rate=1e-3" and best["mean"] == pytest.approx(sum(best["losses"]) / 2)
    assert worst == {"setting": "learning_rate=1e30", "mean": None, "deviation": None, "losses": [None, None]}
    assert re.search(r"learning_rate=1e30.*diverged.*2 of 2", shown)
    monkeypatch.setattr(loop, "train", lambda config: pytest.fail("trained again"))
    main(argv)
    assert json.loads((folder / "table.json").read_text()) == [best, worst]


def test_a_sweep_that_is_stopped_says_so(preset, tmp_path, monkeypatch, capsys):
    def stopped(config):
        raise failures.Interrupted(config.run_directory / "last", 7)

    monkeypatch.setattr(loop, "train", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", preset, "--out", str(tmp_path / "sweep"), "--seeds", "1"])
    assert stop.value.code == 130
    assert re.fullmatch(r"stopped after step 7, saved in .*seed-1.*--resume\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "grid", ["lr", "lr=", "=1", "nothing=1", "lr=high", "seed=5,5", "run=a", "tf32=yes", "steps=0"]
)
def test_a_grid_with_a_mistake_is_refused_before_anything_is_trained(preset, tmp_path, refused, grid):
    refused(main, "sweep", preset, "--grid", grid, "--out", str(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_deviation_is_over_seeds():
    assert sweep.Setting("a", [1.0, 3.0]).deviation == pytest.approx(2**0.5)
    assert sweep.Setting("a", [1.0]).deviation == 0


def trained_by(argv, monkeypatch) -> list:
    """Return the configurations that a sweep trains, without training: each ends at a loss of its learning rate."""
    trained = []

    def train(config):
        trained.append(config)
        config.run_directory.mkdir(parents=True, exist_ok=True)
        (config.run_directory / "report.json").write_text(json.dumps({"val_loss": config.learning_rate}))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", train)
        main(["sweep", *argv])
    return trained


def test_a_result_belongs_to_its_whole_recipe(preset, tmp_path, monkeypatch):
    argv = [preset, "--grid", "lr=1e-3", "--out", str(tmp_path / "sweep")]
    assert len(trained_by(argv, monkeypatch)) == 1
    assert trained_by(argv, monkeypatch) == []
    (longer,) = trained_by([*argv, "--steps", "5"], monkeypatch)
    assert longer.steps == 5 and longer.overwrite
    with open(preset, "r+") as file:
        text = file.read().replace("warmup_steps = 5", "warmup_steps = 6")
        file.seek(0)
        file.write(text)
    (edited,) = trained_by([*argv, "--steps", "5"], monkeypatch)
    assert edited.warmup_steps == 6


def test_a_result_belongs_to_its_data(preset, tmp_path, monkeypatch, tiny):
    data = tmp_path / "data"
    shutil.copytree(tiny.data, data)
    argv = [preset, "--data", str(data), "--out", str(tmp_path / "sweep")]
    assert len(trained_by(argv, monkeypatch)) == 1
    sweep._fingerprint.cache_clear()
    tokens = (data / "train.bin").read_bytes()
    (data / "train.bin").write_bytes(tokens[2:] + tokens[:2])
    assert len(trained_by(argv, monkeypatch)) == 1


def test_seeds_may_be_named_and_true_false_fields_swept(preset, tmp_path, monkeypatch, refused):
    out = ["--out", str(tmp_path / "sweep")]
    seeds = trained_by([preset, "--grid", "seed=5,6", *out], monkeypatch)
    assert [config.seed for config in seeds] == [5, 6]
    bools = trained_by([preset, "--grid", "tf32=true,false", "bias=false", *out], monkeypatch)
    assert [(config.tf32, config.model.bias) for config in bools] == [(True, False), (False, False)]
    twice = ["sweep", preset, "--grid", "seed=5", "--seeds", "2", *out]
    assert "leave one of them out" in refused(main, *twice)
    assert "leave one of them out" in refused(
        main, "sweep", preset, "--grid", "steps=2,3", "--steps", "4", *out
    )


def test_the_kernels_are_those_of_the_flag_or_of_the_grid(preset):
    def chosen(**options):
        plan = sweep.configurations(sweep.Sweep(preset, **options))
        return [config.kernels for _, configs in plan for config in configs]

    assert chosen() == ["auto"]
    assert chosen(kernels="torch") == ["torch"]
    assert chosen(grid=("kernels=torch,fused",)) == ["torch", "fused"]
    with pytest.raises(
        ValueError, match="kernels is given by --kernels and by --grid: leave one of them out"
    ):
        chosen(kernels="torch", grid=("kernels=fused",))
