"""The page of figures is what its files say, and says it in full."""

import doctest
import json
import re

import pytest

from scripts import performance

ROW = {
    "name": "encode",
    "ours": 12345.6,
    "unit": "MB/s",
    "peer": "tiktoken",
    "peer_value": 30000.0,
    "ratio": 0.41,
}
RESULT = {"benchmark": "bpe_encode", "machine": "Z80, 1 cores", "date": "2026-01-02", "rows": [ROW]}


def test_the_pages_are_up_to_date():
    for path, text in performance.pages().items():
        assert text == path.read_text(encoding="utf-8"), "run python scripts/performance.py"
    for plot in re.findall(r"\]\((plots/[^)]+)\)", performance.PAGE.read_text(encoding="utf-8")):
        assert (performance.PAGE.parent / plot).is_file()


def write(folder, name="bpe_encode-z80.json", **changes):
    (folder / name).write_text(json.dumps({**RESULT, **changes}))


def test_a_table_holds_every_row_also_where_a_peer_is_ahead(tmp_path):
    alone = {**ROW, "name": "alone", "peer": "", "peer_value": None, "ratio": None}
    write(tmp_path, rows=[ROW, alone])
    shown = performance.render(tmp_path)
    assert "Z80, 1 cores, 2026-01-02. `python benchmarks/bpe_encode.py`" in shown
    assert "| encode | 12,346 | MB/s | tiktoken | 30,000 | 0.41 (behind) |" in shown
    assert "| alone | 12,346 | MB/s |  |  |  |" in shown


def test_a_gpu_is_not_measured_until_there_is_a_file_of_one(tmp_path):
    write(tmp_path)
    shown = performance.render(tmp_path)
    assert "| layer_norm (32768, 384) bfloat16 forward | best | not measured | 1.2 |" in shown
    assert "| step gpt2-124m, compiled, utilization | datasheet | not measured | 0.45 |" in shown
    device = {"device": "NVIDIA H100", "torch": "2.11", "cuda": "13.0", "csrc_sha256": "ab" * 32}
    share = {**ROW, "peer": "datasheet", "goal": 0.6}
    write(tmp_path, "nvidia-h100.json", benchmark="gpu", rows=[share], **device)
    shown = performance.render(tmp_path)
    assert "not measured" not in shown
    assert (
        "NVIDIA H100, torch 2.11, CUDA 13.0, kernels abababababababab, 2026-01-02. `scripts/gpu_check.sh`"
        in shown
    )
    assert "| datasheet | 30,000 | 0.41 | 0.6 |" in shown  # a share of a peak is never "behind"


def test_each_figure_has_a_bar_for_each_peer_but_the_slowest():
    peers = {"a": 2.0, "b": 0.5, "reference": 9.0, "c": 3.0}
    rows = [{**ROW, "peer": peer, "ratio": ratio} for peer, ratio in peers.items()]
    again = {**rows[0], "unit": "GB/s", "ratio": 7.0}
    bars = performance._bars({**RESULT, "rows": [*rows, again]})
    assert bars == {"encode / a": 2.0, "encode / b": 0.5, "encode / c": 3.0}
    assert performance._bars({**RESULT, "rows": rows[:2]}) == {}


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="has lost its markers"):
        performance.updated("# Figures", "figures", "| table |")


def test_a_sentence_that_no_page_says_is_refused():
    assert doctest.testmod(performance).failed == 0
    with pytest.raises(ValueError, match="no page says 'takes"):
        performance.with_figures("It takes long.", "takes {minutes} minutes", {"minutes": 2})


def test_headlines_are_of_the_quickstarts_machine_or_else_the_last_measured(tmp_path):
    for _, benchmark, pattern, _, _, peer, _ in performance.HEADLINES:
        name = pattern.replace("\\", "").replace("(189|200)", "200")
        row = {**ROW, "name": name, "peer": peer}
        write(tmp_path, f"{benchmark}-a.json", benchmark=benchmark, machine="Old, 2 cores", rows=[row])
        new = {"machine": "New, 2 cores", "date": "2026-02-03", "rows": [{**row, "ratio": 7.0}]}
        write(tmp_path, f"{benchmark}-b.json", benchmark=benchmark, **new)
    write(tmp_path, "quickstart-c.json", benchmark="quickstart", machine="Third, 2 cores")
    assert performance.headlines(tmp_path).count("| 7.0 × | New |") == len(performance.HEADLINES)
    write(tmp_path, "quickstart-c.json", benchmark="quickstart", machine="Old, 2 cores")
    assert performance.headlines(tmp_path).count("| 0.4 × | Old |") == len(performance.HEADLINES)
