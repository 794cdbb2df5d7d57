"""Preparing: what is written, against plain encoding; and that no interruption changes a byte of it."""

import collections
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from itertools import islice

import numpy as np
import psutil
import pytest
import tokenizers

from bpe import Tokenizer, train
from data import encode, sources, splitting
from data.parts import Parts, locked
from data.prepare import Prepare, prepare, read_meta
from data.splitting import Segment
from data.stories import stories
from data.tokenfile import TokenFile

END = "<|endoftext|>"
FILES = ("train.bin", "val.bin", "meta.json", "tokenizer.json")


@pytest.fixture
def text_file(tmp_path):
    """200 stories in a file, and in a list."""
    texts = list(islice(stories(seed=1), 200))
    path = tmp_path / "stories.txt"
    path.write_text(END.join(texts), encoding="utf-8")
    return path, texts


@pytest.fixture
def options(tmp_path, text_file, tokenizer_path):
    def make(**changes):
        given = {"out": tmp_path / "out", "source": (f"text:{text_file[0]}",), "tokenizer": tokenizer_path}
        return Prepare(**{**given, "workers": 1, **changes})

    return make


def contents(directory):
    return {name: (directory / name).read_bytes() for name in FILES}


def documents_of(directory, split):
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    ids = np.memmap(directory / f"{split}.bin", dtype=np.uint16)  # as nanoGPT reads it
    return tokenizer.decode(ids).split(END)[:-1]


def test_the_files_hold_every_document_in_order_each_closed_once(options, text_file):
    prepare(options(val_fraction=0.3))
    out, texts = options().out, text_file[1]
    for_val = [int(hashlib.blake2b(t.encode(), digest_size=8).hexdigest(), 16) < 0.3 * 2**64 for t in texts]
    assert documents_of(out, "train") == [t for t, val in zip(texts, for_val, strict=True) if not val]
    assert documents_of(out, "val") == [t for t, val in zip(texts, for_val, strict=True) if val]
    assert 30 < sum(for_val) < 90


def test_ids_are_those_of_encoding_each_document_alone(options, text_file):
    meta = prepare(options(val_fraction=0.3))
    tokenizer = Tokenizer.load(options().tokenizer)
    expected = [[*tokenizer.encode(text), meta.end_of_text] for text in documents_of(options().out, "train")]
    tokens = TokenFile.open(options().out, "train").tokens
    assert tokens.tolist() == [id for ids in expected for id in ids]


def test_meta_counts_what_is_there(options, text_file):
    meta = prepare(options(val_fraction=0.3))
    for split in ("train", "val"):
        texts = documents_of(options().out, split)
        assert meta.documents[split] == len(texts)
        assert meta.bytes[split] == sum(len(text.encode()) for text in texts)
        assert meta.tokens[split] * 2 == (options().out / f"{split}.bin").stat().st_size
    assert sum(meta.documents.values()) == len(text_file[1])
    assert meta == read_meta(options().out)


def test_a_growing_corpus_moves_no_document_to_the_other_split(tmp_path, options, text_file):
    prepare(options(val_fraction=0.3))
    before = set(documents_of(options().out, "val"))
    path = tmp_path / "grown.txt"
    path.write_text(END.join(["A new tale.", *reversed(text_file[1]), *islice(stories(seed=2), 100)]))
    prepare(options(out=tmp_path / "grown", source=(f"text:{path}",), val_fraction=0.3))
    after = set(documents_of(tmp_path / "grown", "val"))
    assert before == after & set(text_file[1]) and before < after


def test_marks_of_special_tokens_in_the_text_stay_text(tmp_path, options):
    path = tmp_path / "tricky.jsonl"
    texts = [f"Say {END} aloud, number {i}." for i in range(40)] + [f"Plain {i}." for i in range(40)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    meta = prepare(options(source=(f"jsonl:{path}#text",), val_fraction=0.2))
    tokenizer = Tokenizer.load(options().tokenizer)
    found = []
    for split in ("train", "val"):
        ids = TokenFile.open(options().out, split).tokens
        parts = np.split(ids, np.flatnonzero(ids == meta.end_of_text) + 1)[:-1]
        found += [tokenizer.decode(part[:-1]) for part in parts]
    assert sorted(found) == sorted(texts)


def test_special_tokens_can_be_added_and_bos_opens_each_document(tmp_path, options, text_file):
    special = ("bos", "pad", "sep", "unk")
    prepare(options(tokenizer=None, vocab_size=300, special_tokens=special, val_fraction=0.3))
    tokenizer = Tokenizer.load(options().out / "tokenizer.json")
    assert list(tokenizer.special_tokens) == [END, "<|bos|>", "<|pad|>", "<|sep|>", "<|unk|>"]
    texts = documents_of(options().out, "train")
    assert texts and all(text.startswith("<|bos|>") and text.count("<|bos|>") == 1 for text in texts)
    assert {text.removeprefix("<|bos|>") for text in texts} < set(text_file[1])


def test_a_trained_tokenizer_never_saw_the_validation_documents(tmp_path, options):
    texts = [f"word{i} " * 30 for i in range(60)]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(texts))
    prepare(
        options(
            source=(f"text:{path}",), split_documents="line", tokenizer=None, vocab_size=900, val_fraction=0.3
        )
    )
    learnt = set(Tokenizer.load(options().out / "tokenizer.json").vocab.values())
    val_numbers = {text.split()[0].removeprefix("word") for text in documents_of(options().out, "val")}
    train_numbers = {text.split()[0].removeprefix("word") for text in documents_of(options().out, "train")}
    two_digits = {number for number in train_numbers if len(number) == 2}
    assert any(number.encode() in learnt for number in two_digits)
    assert not any(number.encode() in learnt for number in val_numbers if len(number) == 2)


def test_cleaning_is_counted_and_duplicates_go(tmp_path, options, monkeypatch):
    monkeypatch.setattr(encode, "JOB_SEGMENTS", 7)  # duplicates are in different jobs
    texts = [f"Tom said â€œhello number {i}â€ to all." for i in range(50)]
    rows = [*texts, *texts[:10], "", "   ", "short", texts[3]]
    path = tmp_path / "dirty.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    meta = prepare(options(source=(f"jsonl:{path}",), clean=True, val_fraction=0.2, part_bytes=300))
    kept = documents_of(options().out, "train") + documents_of(options().out, "val")
    assert sorted(kept) == sorted(f"Tom said “hello number {i}” to all." for i in range(50))
    assert meta.removed == {"empty": 2, "short": 1, "duplicate": 11}
    assert meta.changed == {"mojibake": 61}


def test_without_cleaning_only_empty_documents_go_and_are_counted(tmp_path, options):
    path = tmp_path / "rows.jsonl"
    rows = [*("twice " * 5,) * 2, "", None, *(f"row {i}" for i in range(30))]
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    meta = prepare(options(source=(f"jsonl:{path}",), val_fraction=0.2))
    assert meta.removed == {"empty": 2} and sum(meta.documents.values()) == 32


def test_documents_that_are_no_utf8_are_skipped_and_counted(tokenizer_path):
    encoder = encode.Encoder(Tokenizer.load(tokenizer_path))
    result = encoder([Segment(b"fine"), Segment(b"br\xffken"), Segment(b"fine too")])
    assert result.removed == {"undecodable": 1} and result.segments_read == 3 and len(result.lengths) == 2
    assert not result.changed


def test_a_batch_of_which_nothing_remains(tokenizer_path):
    result = encode.Encoder(Tokenizer.load(tokenizer_path))([Segment(b""), Segment(b" \n")])
    assert result.removed == {"empty": 2} and len(result.ids) == len(result.lengths) == 0


def test_workers_and_parts_do_not_change_a_byte(tmp_path, options, monkeypatch):
    monkeypatch.setattr(encode, "JOB_BYTES", 2000)
    prepare(options())
    prepare(options(out=tmp_path / "two", workers=2, part_bytes=3000))
    assert contents(options().out) == contents(tmp_path / "two")


class Crash(BaseException):
    """Stands for a power cut: nothing of ours catches it."""


def stop_after(parts, options):
    """Prepare until this many full parts exist, as if the power failed then; return the segments read at each."""
    real, held = Parts.commit, []

    def commit(self, state):
        real(self, state)
        held.append(state["segments"])
        if len(held) == parts:
            raise Crash

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Parts, "commit", commit)
        prepare(options)
    return held


@pytest.mark.parametrize("what", ["write", "fsync", "replace", "unlink"])
def test_a_crash_at_any_call_changes_nothing(tmp_path, options, monkeypatch, what):
    monkeypatch.setattr(encode, "JOB_BYTES", 6_000)
    settings = {"source": ("stories",), "stories_bytes": 30_000, "clean": True, "part_bytes": 12_000}
    settings |= {"val_fraction": 0.2, "overwrite": what == "unlink"}
    prepare(options(**settings))
    owner, name = (Parts, "write") if what == "write" else (os, what)
    real, calls = getattr(owner, name), collections.Counter()

    def crashing(*args, **named):
        calls[name] += 1
        if calls[name] == crash_at:
            raise Crash
        return real(*args, **named)

    crash_at, crashes = 0, 0
    while crashes == crash_at:
        crash_at, out = crash_at + 1, tmp_path / f"crash{crash_at}"
        if what == "unlink":  # most is removed where something else was begun
            stop_after(2, options(**{**settings, "out": out, "seed": 1}))
        calls.clear()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, crashing)
                prepare(options(out=out, **settings))
        except Crash:
            crashes += 1
            prepare(options(out=out, **settings))
        assert contents(out) == contents(options().out)
        assert sorted(os.listdir(out)) == sorted(FILES)
    assert crashes > 3


def command(options, *more):
    """Return the command line of a preparation, for a process of its own."""
    words = ["--source", *options.source, "--tokenizer", options.tokenizer, "--out", str(options.out)]
    return [sys.executable, "-m", "data", "prepare", *words, *more]


def test_killed_and_given_again_is_byte_identical(tmp_path, options, text_file):
    text_file[0].write_text(END.join(islice(stories(seed=1), 12_000)))  # 6 MB
    small_parts = ("--part-bytes", "1000000", "--workers", "2")
    killed = options(out=tmp_path / "killed")
    process = subprocess.Popen(command(killed, *small_parts), stdout=subprocess.DEVNULL)
    journal = killed.out / ".prepare" / "journal.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=60)[1]  # none is left behind
    assert journal.read_bytes().count(b"\n") >= 2 and not (killed.out / "meta.json").exists()
    for out in (killed.out, options().out):
        prepare(options(out=out, part_bytes=1_000_000))
    assert contents(killed.out) == contents(options().out)


def test_going_on_reads_no_part_twice(options, monkeypatch):
    monkeypatch.setattr(encode, "JOB_BYTES", 20_000)
    parts = stop_after(2, options(part_bytes=40_000))
    encoded_again = []
    real_call = encode.Encoder.__call__
    monkeypatch.setattr(
        encode.Encoder,
        "__call__",
        lambda self, batch: encoded_again.append(len(batch)) or real_call(self, batch),
    )
    prepare(options(part_bytes=40_000))
    assert sum(encoded_again) == 200 - parts[1] < 200


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, options):
    limit = 60_000  # bytes that a file may have: the kernel says so as it would of a full disk
    out = options(out=tmp_path / "full")
    done = subprocess.run(
        command(out, "--part-bytes", "20000"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr and "make room and give the same command again" in done.stderr
    for again in (out, options()):
        prepare(again)
    assert contents(out.out) == contents(options().out)


def _die(encoder, segments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_an_error_with_a_way_out(options, monkeypatch):
    monkeypatch.setattr(encode, "_encode_job", _die)
    with pytest.raises(ChildProcessError, match=r"a worker process died.*--workers"):
        prepare(options(workers=2))


def test_finished_work_is_not_done_again(options, monkeypatch):
    meta = prepare(options())
    monkeypatch.setattr(encode.Encoder, "__call__", None)
    assert prepare(options()) == meta


def test_another_corpus_is_refused_unless_overwritten(options):
    before = prepare(options())
    with pytest.raises(ValueError, match=r"already holds another corpus.*--overwrite"):
        prepare(options(clean=True))
    assert read_meta(options().out) == before
    assert prepare(options(clean=True, overwrite=True)) == read_meta(options().out) != before


def test_an_unfinished_preparation_of_something_else_is_refused(options):
    stop_after(1, options())
    with pytest.raises(ValueError, match=r"unfinished preparation.*--overwrite"):
        prepare(options(clean=True))
    assert prepare(options(clean=True, overwrite=True)).recipe["clean"]


def test_an_unfinished_preparation_that_was_damaged_is_refused_unless_overwritten(tmp_path, options):
    stop_after(1, options())
    os.truncate(options().out / ".prepare" / "train.bin", 10)
    with pytest.raises(ValueError, match=r"train\.bin was cut short by something else: add --overwrite"):
        prepare(options())
    prepare(options(overwrite=True))
    prepare(options(out=tmp_path / "fresh"))
    assert contents(options().out) == contents(tmp_path / "fresh")


def test_without_its_recipe_nothing_that_was_left_counts(tmp_path, options):
    stop_after(1, options())
    (options().out / ".prepare" / "recipe.json").unlink()
    for out in (options().out, tmp_path / "fresh"):
        prepare(options(out=out, source=("stories",), stories_bytes=30_000, seed=7))
    assert contents(options().out) == contents(tmp_path / "fresh")


def test_changed_input_is_another_corpus(options, text_file):
    prepare(options())
    text_file[0].write_text(text_file[0].read_text() + END + "One more story.")
    with pytest.raises(ValueError, match="already holds another corpus"):
        prepare(options())


def test_another_tokenizer_at_the_same_path_is_another_corpus(tmp_path, options):
    path = tmp_path / "tokenizer.json"
    shutil.copy(options().tokenizer, path)
    prepare(options(tokenizer=str(path)))
    prepare(options(tokenizer=None, vocab_size=300, out=tmp_path / "other"))
    shutil.copy(tmp_path / "other" / "tokenizer.json", path)
    with pytest.raises(ValueError, match="already holds another corpus"):
        prepare(options(tokenizer=str(path)))


def test_a_folder_names_its_tokenizer(tmp_path, options, tokenizer_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tokenizer_path, folder / "tokenizer.json")
    prepare(options(tokenizer=str(folder), out=tmp_path / "by folder"))
    prepare(options(out=tmp_path / "by path"))
    by_folder, by_path = (contents(tmp_path / name) for name in ("by folder", "by path"))
    assert all(by_folder[name] == by_path[name] for name in by_path if name != "meta.json")
    Tokenizer.load(folder).with_special_tokens(["<new>"]).save(folder / "tokenizer.json")
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(options(tokenizer=str(folder), out=tmp_path / "by folder"))


def test_two_preparations_at_once_in_one_folder_are_refused(options):
    with (
        locked(options().out),
        pytest.raises(ValueError, match="another process is preparing"),
    ):
        prepare(options())


def test_a_source_of_validation_documents(tmp_path, options, text_file):
    path = tmp_path / "valid.txt"
    path.write_text(END.join(["First of them.", "Second of them."]))
    prepare(options(val_source=f"text:{path}"))
    assert documents_of(options().out, "val") == ["First of them.", "Second of them."]
    assert documents_of(options().out, "train") == text_file[1]


@pytest.mark.parametrize("seed", range(6))
def test_of_two_long_documents_one_is_for_validation(tmp_path, options, monkeypatch, seed):
    monkeypatch.setattr(splitting, "LONGEST", 1000)  # both come in several segments
    path = tmp_path / "long.txt"
    path.write_text(END.join(f"{word}{seed} " * 400 for word in ("up", "down")))
    assert prepare(options(source=(f"text:{path}",))).documents == {"train": 1, "val": 1}


@pytest.mark.parametrize("special", [(), ("bos",)])
def test_whole_files_are_never_joined_without_a_mark(tmp_path, options, special):
    folder = tmp_path / "books"
    folder.mkdir()
    books = {f"{name}.txt": f"{name} {{}} walked on, and so on. ".format for name in ("Ann", "Bob", "Cid")}
    for name, line in books.items():
        (folder / name).write_text("".join(map(line, range(6000))))  # 9 passages or more
    wanted = {"source": (f"text:{folder}/*.txt",), "split_documents": "whole", "val_fraction": 0.3}
    meta = prepare(options(tokenizer=None, vocab_size=300, special_tokens=special, **wanted))
    tokenizer = Tokenizer.load(options().out / "tokenizer.json")
    found = {}
    for split in ("train", "val"):
        ids = TokenFile.open(options().out, split).tokens
        assert ids[-1] == meta.end_of_text and (ids == meta.end_of_text).sum() == meta.documents[split] > 1
        found[split] = tokenizer.decode(ids).split(END)[:-1]
        begin = "<|bos|>" if special else ""
        assert all(text.startswith(begin) and text.count("<|bos|>") == len(special) for text in found[split])
        found[split] = [text.removeprefix(begin) for text in found[split]]
    for name in books:
        text = (folder / name).read_text().strip()
        parts = [part for split in found for part in found[split] if part in text]
        assert (
            "".join(sorted(parts, key=text.index)) == text
        )  # each document is part of one book: none is lost
        books[name] = len(parts)
    assert sum(books.values()) == sum(map(len, found.values()))


def test_where_passages_change_sides_does_not_depend_on_workers_or_interruptions(
    tmp_path, options, monkeypatch
):
    monkeypatch.setattr(encode, "JOB_BYTES", 20_000)
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the book.\n" for i in range(20_000)))
    whole = {"source": (f"text:{path}",), "split_documents": "whole", "val_fraction": 0.4}
    prepare(options(**whole))
    stop_after(3, options(out=tmp_path / "stopped", part_bytes=40_000, **whole))
    for name, more in (("stopped", {}), ("two", {"workers": 2})):
        prepare(options(out=tmp_path / name, **whole, **more))
        assert contents(tmp_path / name) == contents(options().out)


def test_auto_decides_for_each_file_and_says_so(tmp_path, options, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a readme.txt").write_text("This folder holds tales.\n")
    tales = list(islice(stories(seed=3), 40))
    (folder / "tales.txt").write_text(END.join(tales))
    meta = prepare(options(source=(f"text:{folder}/*",), val_fraction=0.3))
    assert sum(meta.documents.values()) == 41
    assert set(documents_of(options().out, "train") + documents_of(options().out, "val")) >= set(tales)
    assert f"separator for {folder}/tales.txt" in capsys.readouterr().out


def test_marks_behind_the_first_megabyte_are_warned_of(tmp_path, options, capsys):
    path = tmp_path / "tales.txt"
    path.write_text(("One long line of a tale. " * 20 + "\n") * 2500 + END + "Another." + END)
    prepare(options(source=(f"text:{path}",)))
    assert f"warning: {path} holds {END} 2 times as text" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["auto", "separator"])
def test_a_separator_that_never_occurs_is_warned_of(tmp_path, options, text_file, capsys, mode):
    wanted = {"separator": "----", "split_documents": mode, "source": (f"text:{text_file[0]}", "stories")}
    meta = prepare(options(stories_bytes=20_000, **wanted))
    assert "never holds the separator '----': each file is one document" in capsys.readouterr().err
    path = tmp_path / "cut.txt"
    path.write_text("----".join(text_file[1]))
    meta = prepare(options(out=tmp_path / "cut", **{**wanted, "source": (f"text:{path}",)}))
    assert sum(meta.documents.values()) == len(text_file[1]) and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "pattern"), [("out", "**"), ("out", "*/*.json"), (".", "*"), ("sub/out", "sub/**/*.bin")]
)
def test_files_in_a_folder_that_is_read_are_refused(tmp_path, options, out, pattern):
    for name in ("tales.txt", "sub/old.bin", "sub/old.json"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(END.join(islice(stories(seed=1), 30)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=r"--out .* is inside text:.*, which would read .*: choose a folder elsewhere"
    ):
        prepare(options(out=tmp_path / "in" / out, source=(f"text:{tmp_path}/in/{pattern}",)))
    assert sorted(tmp_path.rglob("*")) == before
    prepare(options(out=tmp_path / "in" / "out", source=(f"text:{tmp_path}/in/*.txt",)))  # reads none of it


def peak_of_reading(path, mode):
    """Return the most memory that reading a file takes, in bytes."""
    source = sources.open_source(f"text:{path}", sources.Reading(split_documents=mode))
    collections.deque(source.documents(), maxlen=0)  # what is imported on the way does not count
    tracemalloc.start()
    collections.deque(source.documents(), maxlen=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("mode", ["separator", "line", "whole"])
def test_memory_does_not_grow_with_a_line(tmp_path, mode):
    path = tmp_path / "line.txt"
    path.write_text("word " * 6_000_000)  # 30 MB
    assert peak_of_reading(path, mode) < 20_000_000


def test_a_table_without_rows_is_named(tmp_path, options):
    path = tmp_path / "tales.csv"
    path.write_text("text\n")
    with pytest.raises(ValueError, match=r"tales\.csv has no document to learn from: every one is empty"):
        prepare(options(source=(f"csv:{path}",), tokenizer=None, vocab_size=300))


def test_no_document_for_a_split_is_refused(options):
    with pytest.raises(ValueError, match="no document for val: 200 documents"):
        prepare(options(val_fraction=1e-9))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": 300}, "either --vocab-size"),
        ({"tokenizer": None}, "either --vocab-size"),
        ({"special_tokens": ("pad",)}, "only be added to a tokenizer that is trained"),
        ({"weights": (1.0, 2.0)}, "--weights needs a number above 0"),
        ({"weights": (0.0,)}, "--weights needs a number above 0"),
        ({"val_fraction": 1.0}, "--val-fraction must be"),
        ({"val_fraction": 0.0}, "--val-fraction must be above 0"),
        ({"val_source": "own"}, "--val-source own needs"),
        ({"val_source": "stories", "val_fraction": 0.1}, "exclude each other"),
        (
            {"split_documents": "line", "separator": "--"},
            "--separator has no effect with --split-documents line",
        ),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"source": ("stories",), "stories_bytes": 0}, "--stories-bytes must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, changes, reason):
    with pytest.raises(ValueError, match=reason):
        prepare(options(**changes))


def test_documents_end_with_the_token_that_the_tokenizer_names(options, text_file, tmp_path):
    texts = text_file[1]
    path = tmp_path / "chat.json"
    train(texts, 300, special_tokens=("<|user|>", "<|im_end|>"), end_of_text="<|im_end|>").save(path)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    end = theirs.token_to_id("<|im_end|>")
    meta = prepare(options(tokenizer=str(path)))
    assert meta.end_of_text == read_meta(tmp_path / "out").end_of_text == end
    tokens = np.concatenate([TokenFile.open(tmp_path / "out", split).tokens for split in ("train", "val")])
    documents = [ids.tolist() for ids in np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]]
    assert sorted(documents) == sorted([*theirs.encode(text.strip()).ids, end] for text in texts)


def test_a_tokenizer_that_closes_no_document_is_refused_with_the_remedy(options, tmp_path):
    Tokenizer([], ["<|user|>"]).save(tmp_path / "chat.json")
    with pytest.raises(ValueError, match=r"no special token that closes documents.*bpe add --end-of-text"):
        prepare(options(tokenizer=str(tmp_path / "chat.json")))


def test_token_files_written_before_the_end_token_had_a_field_are_read(options, text_file):
    meta = prepare(options())
    path = options().out / "meta.json"
    found = json.loads(path.read_text())
    del found["document_end"]
    path.write_text(json.dumps(found))
    assert read_meta(options().out).end_of_text == meta.special_tokens["<|endoftext|>"]
