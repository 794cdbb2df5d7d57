"""Whatever is sent, the server answers in OpenAI's form and leaks no page; and killed, it starts again."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.__main__ import main
from serving.protocol import CHAT, COMPLETION, FIXED
from tests.serving.conftest import assert_all_pages_come_back
from tests.serving.test_http import post

ROOT = Path(__file__).parents[2]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system"]) | JSON,
            "content": st.text(max_size=9) | JSON,
        }
    ),
    max_size=3,
)
# Values that are nearly right reach further into the server than arbitrary ones.
LIKELY = {
    "prompt": st.text(max_size=9) | st.lists(st.text(max_size=9) | st.integers(-1, 300), max_size=4),
    "messages": MESSAGES,
    "model": st.just("tiny"),
    "temperature": st.floats(-0.5, 2.5),
    "n": st.integers(0, 5),
    "best_of": st.integers(0, 5),
    "max_tokens": st.integers(-1, 200),
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=3),
    "stream": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-120, 120), max_size=3),
    "seed": st.integers(),
}
NAMES = [*sorted(COMPLETION | CHAT | set(FIXED)), "surprise"]


@st.composite
def bodies(draw) -> bytes:
    """A request in which some fields are wrong, or bytes that are none."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    names = draw(st.lists(st.sampled_from(NAMES), max_size=5, unique=True))
    content = {name: draw(LIKELY.get(name, JSON) if draw(st.booleans()) else JSON) for name in names}
    if draw(st.booleans()):
        content.update(prompt="a", max_tokens=3)
    body = json.dumps(content).encode()
    return body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 9)) == 0 else body


def answers_to_anything(server, examples: int) -> None:
    address, engine = server

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies(), st.sampled_from(["/v1/completions", "/v1/chat/completions"]))
    def check(body, path):
        status, text = post_raw(address, path, body)
        assert status in (200, 400, 404)
        if status == 200:
            assert text.startswith("data: {") or "choices" in json.loads(text)
        else:
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in text and ".py" not in text

    check()
    assert_all_pages_come_back(engine)
    assert post(address, body=b'{"prompt": "a", "max_tokens": 2}')[0] == 200


def post_raw(address: str, path: str, body: bytes) -> tuple[int, str]:
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_malformed_requests_break_nothing(server):
    answers_to_anything(server, 300)


@pytest.mark.slow
def test_ten_thousand_malformed_requests_break_nothing(server):
    answers_to_anything(server, 10_000)


def start(run: Path, port: int) -> tuple[subprocess.Popen, str]:
    """Start the command; return it and its first line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "serving", str(run), "--port", str(port), "--precision", "int8"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline()


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_killed_server_starts_again_on_its_port(chat_run):
    body = b'{"prompt": "a", "max_tokens": 5, "temperature": 0}'
    process, line = start(chat_run, 0)
    assert line.startswith(f"{chat_run.name}: completions and chats at http://127.0.0.1:")
    address = line.split(" at ")[1].split("/v1")[0]
    first = post(address, body=body)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process, _ = start(chat_run, int(address.rpartition(":")[2]))
    again = post(address, body=body)
    assert first[0] == 200 and again[1]["choices"] == first[1]["choices"]
    process.send_signal(signal.SIGINT)
    assert process.wait() in (0, 130, -signal.SIGINT)
    process.stdout.close()


def test_a_model_is_loaded_without_torchs_compiler(chat_run):
    """Which takes a second to import, of the three that a server may take to its first token."""
    code = "TextModel.load(Path(sys.argv[1]), 'cpu', 'int8'); sys.exit('torch._dynamo' in sys.modules)"
    code = f"import sys; from pathlib import Path; from inference.text import TextModel; {code}"
    subprocess.run([sys.executable, "-c", code, str(chat_run)], cwd=ROOT, check=True)


def test_a_port_in_use_is_one_line(chat_run, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in refused(main, str(chat_run), "--port", port)


def test_mistakes_on_the_command_line_are_one_line(chat_run, refused, tmp_path, monkeypatch):
    run = str(chat_run)
    assert "holds no trained model" in refused(main, str(tmp_path), "--port", "0")
    assert "holds no context of 160 tokens" in refused(main, run, "--port", "0", "--cache-mb", "0.001")
    assert "no/page.html is no file" in refused(main, run, "--page", "no/page.html")
    assert "port is 70000" in refused(main, run, "--port", "70000")
    (tmp_path / "key").write_text("two words\n")
    assert "holds blanks" in refused(main, run, "--api-key-file", str(tmp_path / "key"))
    monkeypatch.setenv("SLM_API_KEY", "")
    assert "SLM_API_KEY is empty" in refused(main, run)
