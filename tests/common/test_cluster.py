"""Jobs on a cluster give what jobs here give, also if workers die; what cannot be reached is said at once."""

import os
import shlex
import signal
import sys
import time
import unittest.mock
from pathlib import Path

import pytest

from bpe import Tokenizer
from bpe.__main__ import main as bpe_main
from common import cluster, workers
from common.cluster import Machines
from data.__main__ import main as data_main
from data.stories import corpus
from data.web.__main__ import main as web_main
from data.web.synthetic import write


def test_jobs_go_where_the_block_says():
    calls = []

    def elsewhere(call, shared, jobs):
        calls.append(shared)
        return iter([call(shared, job) for job in jobs])

    with workers.mapping_by(elsewhere):
        assert list(workers.ordered_map(lambda shared, job: shared + job, 10, [1, 2], 4)) == [11, 12]
    assert list(workers.ordered_map(lambda shared, job: shared + job, 20, [1], 1)) == [21]
    assert calls == [10]


@pytest.mark.parametrize("main", [web_main, data_main, bpe_main])
def test_a_cluster_that_does_not_answer_is_said_before_anything_is_written(main, tmp_path, refused):
    pytest.importorskip("ray")
    (tmp_path / "a.md").write_text("Text.")
    out = str(tmp_path / "out")
    command = {
        web_main: ("extract", "--source", str(tmp_path / "a.md")),
        data_main: ("prepare", "--source", f"text:{tmp_path}/a.md", "--vocab-size", "300"),
        bpe_main: ("train", "--input", str(tmp_path / "a.md"), "--vocab-size", "300"),
    }[main]
    ray = ("--out", out, "--engine", "ray", "--address")
    assert "no Ray cluster answers at 127.0.0.1:1" in refused(main, *command, *ray, "127.0.0.1:1")
    for address in ("nowhere", ":6379", "host:", "host:²"):
        assert "must be auto or HOST:PORT" in refused(main, *command, *ray, address)
    assert "add it, or leave the address out" in refused(main, *command, "--out", out, "--address", "auto")
    assert not Path(out).exists()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'slm\[ray\]'"), cluster.engine(Machines(engine="ray")):
        pass


def dies_once(folder: str, job: int) -> int:
    """Return the job's square; its worker is killed at the first attempt of every third."""
    mark = Path(folder) / f"{job}"
    if job % 3 == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def fails(shared: None, job: int) -> int:
    raise ValueError(f"job {job} is wrong")


@pytest.fixture(scope="module")
def two_machines():
    """Yield the address of a Ray cluster of two nodes on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield found.address
    ray.shutdown()
    found.shutdown()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_replaced(two_machines, tmp_path):
    with cluster.engine(Machines(engine="ray", address=two_machines)):
        assert list(workers.ordered_map(dies_once, str(tmp_path), range(9), 1)) == [
            job * job for job in range(9)
        ]
        assert sorted(int(path.name) for path in tmp_path.iterdir()) == [0, 3, 6]
        with pytest.raises(ValueError, match="job 0 is wrong"):
            list(workers.ordered_map(fails, None, range(3), 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_machines_write_what_one_writes(two_machines, tmp_path):
    pytest.importorskip("resiliparse")
    write(tmp_path / "crawl", 60, per_file=15)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(corpus(1_500_000, number)), encoding="utf-8")
    texts = ("--input", *(str(tmp_path / f"{number}.txt") for number in range(3)))
    ray = ("--engine", "ray", "--address", two_machines)
    for name, where in (("here", ("--workers", "1")), ("there", ray)):
        out = tmp_path / name
        learn = ["train", *texts, "--vocab-size", "600", "--out", str(out / "tokenizer.json")]
        bpe_main([*learn, *(ray if where == ray else ())])
        web_main(["run", "--source", str(tmp_path / "crawl"), "--out", str(out / "web"), *where])
        source = ("--source", "stories", "--stories-bytes", "3000000", "--vocab-size", "400")
        data_main(["prepare", *source, "--out", str(out / "tokens"), *where])
    here, there = files_of(tmp_path / "here"), files_of(tmp_path / "there")
    assert here == there
    assert len(here) > 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_commands_of_the_page_run(two_machines, tmp_path, monkeypatch):
    """docs/scaling-out.md, with a smaller vocabulary; without --address a cluster is started, whatever runs here."""
    pytest.importorskip("resiliparse")
    page = (Path(__file__).parents[2] / "docs" / "scaling-out.md").read_text(encoding="utf-8")
    text = page.replace("10.0.0.5:6379", two_machines).replace("32768", "400")
    commands = [
        shlex.split(line, comments=True)[2:] for line in text.splitlines() if line.startswith("python ")
    ]
    assert [words[0] for words in commands] == ["data", "data", "data", "bpe"]
    assert sum(two_machines in words for words in commands) == 1
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "crawl", 60, per_file=15)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "1.txt").write_text("\n".join(corpus(100_000)), encoding="utf-8")
    # A cluster of one's own asks for tokens, and Ray leaves that in the environment, which other drivers inherit.
    with unittest.mock.patch.dict(os.environ):
        for room, *words in commands:
            {"data": data_main, "bpe": bpe_main}[room](words)
    assert (tmp_path / "corpus" / "report.html").exists()
    assert (tmp_path / "tokens" / "web" / "meta.json").exists()
    assert Tokenizer.load("tokenizer.json").vocab_size == 400


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(two_machines, tmp_path):
    """The command is killed as soon as a file is done, and given again: only the other files are read."""
    import subprocess

    pytest.importorskip("resiliparse")
    write(tmp_path / "crawl", 400, per_file=40)
    command = [sys.executable, "-m", "data", "web", "run", "--source", str(tmp_path / "crawl"), "--out"]
    ray = ("--engine", "ray", "--address", two_machines)
    driver = subprocess.Popen([*command, str(tmp_path / "there"), *ray], stdout=subprocess.DEVNULL)
    work = tmp_path / "there" / "work"
    while driver.poll() is None and len(list(work.glob("*.json"))) < 2:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert len(list(work.glob("*.json"))) >= 2
    subprocess.run([*command, str(tmp_path / "there"), *ray], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*command, str(tmp_path / "here"), "--workers", "1"], check=True, stdout=subprocess.DEVNULL
    )
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
