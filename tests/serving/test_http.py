"""The server as OpenAI's own client sees it, and as everybody else's mistakes do."""

import concurrent.futures
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlparse

import pytest

from bpe import Tokenizer
from inference.chat import ChatTemplate, Message
from inference.text import TextModel
from model.generate import Rules
from serving.scheduler import Limits
from tests.serving.conftest import assert_all_pages_come_back, serving

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install .[dev]")


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ours(chat_run) -> TextModel:
    return TextModel.load(chat_run, "cpu", "float32")


@pytest.fixture(autouse=True)
def no_page_is_lost(server):
    yield
    assert_all_pages_come_back(server[1])


WHOLE = {"ignore_eos": True}  # what a random model draws when depends on how the machine rounds


def expected(ours, ids, count, rules=None, seed=0, stops=(), whole=False):
    """What sample.py writes; a `whole` text does not end before `count` tokens."""
    found = ours.generate(
        [ids], count, rules or Rules(temperature=0), seeds=[seed], stops=stops, ignore_eot=whole
    )
    return found.finish()[0].text


def post(address, path="/v1/completions", body=b"{}", headers=None):
    """Send anything; return status and JSON."""
    place = urlparse(address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=300)
    connection.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content else None


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "slm"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4")


def test_a_completion_is_what_sample_writes(client, ours):
    ids = ours.encode("Once upon")
    answer = client.completions.create(
        model="tiny", prompt="Once upon", max_tokens=40, temperature=0, extra_body=WHOLE
    )
    assert answer.choices[0].text == expected(ours, ids, 40, whole=True)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(ids) and answer.usage.completion_tokens == 40
    sampled = client.completions.create(
        model="tiny", prompt="Once upon", max_tokens=30, temperature=0.9, top_p=0.8, seed=7, n=3,
        extra_body={"top_k": 40, "min_p": 0.001, "repetition_penalty": 1.1},
    )  # fmt: skip
    rules = Rules(0.9, 40, 0.8, 0.001, 1.1)
    assert [choice.text for choice in sampled.choices] == [
        expected(ours, ids, 30, rules, 7 + i) for i in range(3)
    ]


def test_a_stream_is_the_same_text_in_whole_characters(client, ours):
    options = {
        "model": "tiny",
        "prompt": ["Once", "héé"],
        "max_tokens": 60,
        "temperature": 1.0,
        "seed": 3,
        "n": 2,
    }
    whole = client.completions.create(**options)
    texts, reasons, usage = [""] * 4, [None] * 4, None
    for chunk in client.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.finish_reason or choice.text
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_chats_follow_the_template(client, ours, chat_run):
    template = ChatTemplate.load(chat_run)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <|end|> there"}]
    ids = template.prompt([Message.of(message) for message in messages])
    found = ours.generate([ids], 40, Rules(temperature=0), seeds=[0]).finish()[0]
    text = template.text(found.ids)
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=40, temperature=0)
    assert answer.choices[0].message.content == text and answer.choices[0].message.role == "assistant"
    pieces, roles = "", []
    for chunk in client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=40, temperature=0, stream=True
    ):
        pieces += chunk.choices[0].delta.content or ""
        roles.append(chunk.choices[0].delta.role)
    assert pieces == text and roles[0] == "assistant" and not any(roles[1:])
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert client.chat.completions.create(model="tiny", messages=parts).choices[0].finish_reason in (
        "stop",
        "length",
    )


def test_stop_strings_are_cut_off_and_echo_comes_first(client, ours):
    text = expected(ours, ours.encode("abc"), 60, whole=True)
    stop = text[10:12]
    where = text.index(stop)
    for stream in (False, True):
        answer = client.completions.create(
            model="tiny",
            prompt="abc",
            max_tokens=60,
            temperature=0,
            stop=[stop, "never"],
            echo=True,
            stream=stream,
            extra_body=WHOLE,
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == "abc" + text[:where]
        assert choices[-1].finish_reason == "stop"


def test_log_probabilities_add_up(client, ours):
    ids = ours.tokenizer.encode("Once")
    answer = client.completions.create(
        model="tiny", prompt="Once", max_tokens=3, temperature=0, echo=True, logprobs=2, extra_body=WHOLE
    )
    found = answer.choices[0].logprobs
    assert found.tokens[:4] == [chr(id) for id in ids] and len(found.token_logprobs) == 7
    assert found.text_offset[:4] == [0, 1, 2, 3]
    again = client.completions.create(
        model="tiny", prompt=[*ours.encode("Once")], max_tokens=0, echo=True, logprobs=0
    )
    assert again.choices[0].logprobs.token_logprobs == found.token_logprobs[:4]
    nothing = client.completions.create(model="tiny", prompt="Once", max_tokens=0, echo=True, n=3)
    assert [choice.text for choice in nothing.choices] == ["Once"] * 3
    greedy = found.token_logprobs[4:]
    assert greedy == [max(each.values()) for each in found.top_logprobs[4:]]
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, logprobs=True, top_logprobs=3,
        temperature=0,
    ).choices[0].logprobs.content  # fmt: skip
    assert all(each.logprob == each.top_logprobs[0].logprob and len(each.top_logprobs) == 3 for each in chat)
    assert all(bytes(each.bytes).decode("utf-8", "replace") == each.token for each in chat)


def test_best_of_and_biases(client):
    every = client.completions.create(
        model="tiny", prompt="x", max_tokens=8, temperature=1, seed=5, n=6, logprobs=0
    )
    best = max(every.choices, key=lambda choice: sum(choice.logprobs.token_logprobs))
    one = client.completions.create(model="tiny", prompt="x", max_tokens=8, temperature=1, seed=5, best_of=6)
    assert one.choices[0].text == best.text
    biased = client.completions.create(model="tiny", prompt="x", max_tokens=5, logit_bias={"65": 100})
    assert biased.choices[0].text == "AAAAA"


MISTAKES = {
    "an unknown model": ({"model": "gpt-4"}, 404, "model"),
    "a temperature below 0": ({"temperature": -1}, 400, "temperature"),
    "a temperature of words": ({"temperature": "hot"}, 400, "temperature"),
    "a temperature that is too cold": ({"temperature": 1e-9}, 400, "temperature"),
    "a flag for a number": ({"n": True}, 400, "n"),
    "no texts": ({"n": 0}, 400, "n"),
    "too many texts": ({"n": 1000}, 400, "n"),
    "more texts than run": ({"n": 100}, 400, "n"),
    "best_of below n": ({"n": 3, "best_of": 2}, 400, "best_of"),
    "best_of in a stream": ({"best_of": 2, "stream": True}, 400, "best_of"),
    "top_p of 0": ({"top_p": 0}, 400, "top_p"),
    "top_k of 0": ({"top_k": 0}, 400, "top_k"),
    "an empty stop": ({"stop": [""]}, 400, "stop"),
    "a stop of numbers": ({"stop": [1]}, 400, "stop"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "a fraction of a token": ({"max_tokens": 1.5}, 400, "max_tokens"),
    "a bias for no token": ({"logit_bias": {"100000": 1}}, 400, "logit_bias"),
    "a bias for a word": ({"logit_bias": {"the": 1}}, 400, "logit_bias"),
    "a bias of words": ({"logit_bias": {"1": "high"}}, 400, "1"),
    "a prompt that is an object": ({"prompt": {}}, 400, "prompt"),
    "a prompt of mixed types": ({"prompt": ["a", 1]}, 400, "prompt"),
    "a prompt of ids beyond": ({"prompt": [99999]}, 400, "prompt"),
    "an endless prompt": ({"prompt": "a" * 5000}, 400, "prompt"),
    "a penalty": ({"presence_penalty": 0.5}, 400, "presence_penalty"),
    "a suffix": ({"suffix": "end"}, 400, "suffix"),
    "an unknown field": ({"temprature": 1}, 400, "'temprature'"),
    "stream_options without a stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    "logprobs beyond": ({"logprobs": 100}, 400, "logprobs"),
}


@pytest.mark.parametrize("changes, status, param", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(server, changes, status, param):
    found, content = post(server[0], body=json.dumps({"prompt": "a", **changes}).encode())
    assert (found, content["error"]["param"]) == (status, param), content
    assert set(content["error"]) == {"message", "type", "param", "code"}


CHAT_MISTAKES = {
    "no messages": ({"messages": []}, "at least one message"),
    "messages that are text": ({"messages": "Hi"}, "at least one message"),
    "a message that is text": ({"messages": ["Hi"]}, "must be an object"),
    "an unknown role": ({"messages": [{"role": "wizard", "content": "Hi"}]}, "the role 'wizard'"),
    "no content": ({"messages": [{"role": "user"}]}, "a role and a content"),
    "the wrong turn": ({"messages": [{"role": "assistant", "content": "Hi"}]}, "turn 1"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
    "tools": ({"tools": [{"type": "function"}]}, "tools is not supported"),
    "a tool call": ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "not supported"),
    "JSON mode": ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
    "top_logprobs alone": ({"top_logprobs": 2}, "needs logprobs"),
    "a prompt": ({"prompt": "Hi"}, "unrecognized request argument"),
}


@pytest.mark.parametrize("changes, message", CHAT_MISTAKES.values(), ids=CHAT_MISTAKES)
def test_a_mistake_in_a_chat_is_named(server, changes, message):
    body = {"messages": [{"role": "user", "content": "Hi"}], **changes}
    status, content = post(server[0], "/v1/chat/completions", json.dumps(body).encode())
    assert status == 400 and message in content["error"]["message"], content


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "not UTF-8": b'{"prompt": "\xff"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": 1e999}',
    "depth": b"[" * 100_000,
    "a number of 10,000 digits": b'{"seed": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request_is_refused(server, body):
    status, content = post(server[0], body=body)
    assert status == 400 and content["error"]["type"] == "invalid_request_error"


def test_heads_that_are_refused(server):
    address = server[0]
    assert post(address, body=b"{}", headers={"Content-Type": "text/plain"})[0] == 415
    assert post(address, body=b"{}", headers={"Host": "evil.example"})[0] == 403
    assert post(address, body=b" " * (1 << 20) + b"{}")[0] == 413
    assert post(address, "/v1/embeddings")[0] == 404
    assert post(address, "/v1/models")[0] == 405


def test_lone_surrogates_become_replacement_characters(server, ours):
    status, content = post(server[0], body=b'{"prompt": "a\\ud800", "echo": true, "max_tokens": 1}')
    assert status == 200 and content["choices"][0]["text"].startswith("a\ufffd")
    assert post(server[0], body=b'{"prompt": "a", "model": "\\ud800"}')[0] == 404


def test_health_metrics_and_a_page(server, chat_run, tmp_path):
    import urllib.request

    client_library = pytest.importorskip(
        "prometheus_client.parser", reason="prometheus_client is not installed"
    )
    text = urllib.request.urlopen(f"{server[0]}/metrics").read().decode()
    families = {family.name: family for family in client_library.text_string_to_metric_families(text)}
    assert families["slm_pages"].samples[0].value == server[1].scheduler.pool.count
    assert json.loads(urllib.request.urlopen(f"{server[0]}/health").read()) == {"status": "ok"}
    page = tmp_path / "page.html"
    page.write_text("<h1>lens</h1>")
    with serving(chat_run, page=str(page)) as (address, _):
        answer = urllib.request.urlopen(f"{address}/")
        assert answer.read() == b"<h1>lens</h1>" and answer.headers["content-type"].startswith("text/html")


def test_a_key_is_asked_for(chat_run):
    with serving(chat_run, api_key="secret") as (address, _):
        assert post(address)[0] == 401
        assert post(address, headers={"Authorization": "Bearer wrong"})[0] == 401
        body = b'{"prompt": "a", "max_tokens": 1}'
        assert post(address, body=body, headers={"Authorization": "Bearer secret"})[0] == 200


def test_without_a_template_chats_are_refused_and_completions_work(chat_run):
    with serving(chat_run, template=False) as (address, _):
        status, content = post(
            address, "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}]}'
        )
        assert status == 400 and "no chat template" in content["error"]["message"]
        assert post(address, body=b'{"prompt": "a"}')[0] == 200


def raw_stream(address: str, **fields) -> socket.socket:
    """Ask for a long stream, and do not read it."""
    place = urlparse(address)
    connection = socket.create_connection((place.hostname, place.port), timeout=300)
    body = json.dumps(
        {"prompt": "a", "max_tokens": 150, "stream": True, "ignore_eos": True, **fields}
    ).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def slow_down(engine, monkeypatch) -> None:
    """Let every step take 20 ms, so that requests last longer than it takes to notice something."""
    step = engine.scheduler.step

    def slow_step():
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(engine.scheduler, "step", slow_step)


def test_clients_that_leave_take_their_requests_along(server, ours, client, monkeypatch):
    address, engine = server
    slow_down(engine, monkeypatch)
    before = engine.scheduler.counters.drawn_tokens
    leaving = [raw_stream(address, n=4) for _ in range(12)]
    assert all(connection.recv(64).startswith(b"HTTP/1.1 200") for connection in leaving)
    whole = threading.Thread(target=lambda: cut_short(address))
    whole.start()
    for connection in leaving:
        connection.close()
    answer = client.completions.create(model="tiny", prompt="Once upon", max_tokens=40, temperature=0)
    assert answer.choices[0].text == expected(ours, ours.encode("Once upon"), 40)
    whole.join()
    assert_all_pages_come_back(engine)
    assert engine.scheduler.counters.drawn_tokens - before < 12 * 4 * 150


def cut_short(address: str) -> None:
    """Ask for a whole answer and leave before it comes."""
    place = urlparse(address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=300)
    body = json.dumps({"prompt": "b", "max_tokens": 150, "n": 8, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    time.sleep(0.02)
    connection.close()


def test_a_slow_reader_loses_nothing_and_stops_nobody(server, client, ours):
    slow = raw_stream(server[0], n=4)
    answer = client.completions.create(model="tiny", prompt="abc", max_tokens=60, temperature=0)
    assert answer.choices[0].text == expected(ours, ours.encode("abc"), 60)
    text = b""
    while b"[DONE]" not in text:
        text += slow.recv(100)
    slow.close()


@pytest.mark.parametrize("clients", [1, 8, 64])
def test_a_crowd_gets_what_each_would_get_alone(chat_run, ours, clients):
    """In a cache that holds a sixth of them, so that requests wait and lose their pages."""
    wanted = [("abcdefgh" * (i % 9 + 1), 20 + i % 7) for i in range(clients)]
    with serving(chat_run, limits=Limits(cache_mb=1.0, chunk=32)) as (address, engine):

        def ask(job):
            body = json.dumps({"prompt": job[0], "max_tokens": job[1], "temperature": 0, "ignore_eos": True})
            return post(address, body=body.encode())[1]["choices"][0]["text"]

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(ask, wanted))
        assert_all_pages_come_back(engine)
    for text, (prompt, count) in zip(found, wanted, strict=True):
        ids = ours.generate(
            [ours.encode(prompt)], count, Rules(temperature=0), seeds=[0], ignore_eot=True
        ).finish()[0]
        assert text == ids.text


def test_a_full_queue_and_a_slow_request_are_told(chat_run, monkeypatch):
    with serving(chat_run, limits=Limits(running=1), queue=1) as (address, engine):
        slow_down(engine, monkeypatch)
        streams = [raw_stream(address)]
        while not engine.scheduler.running:
            time.sleep(0.001)
        streams.append(raw_stream(address))
        while not engine.waiting:
            time.sleep(0.001)
        status, content = post(address, body=b'{"prompt": "a", "max_tokens": 100}')
        for connection in streams:
            connection.close()
    assert status == 429 and content["error"]["code"] == "queue_full"
    with serving(chat_run, timeout=0.001) as (address, engine):
        status, content = post(address, body=b'{"prompt": "a", "max_tokens": 100, "ignore_eos": true}')
        assert status == 504 and "longer than 0.001 seconds" in content["error"]["message"]
        assert_all_pages_come_back(engine)


def test_a_byte_level_tokenizer_writes_halves_of_characters(ours):
    text = expected(ours, ours.encode("Once"), 60, Rules(), seed=3, whole=True)
    assert isinstance(ours.tokenizer, Tokenizer) and "\ufffd" in text
