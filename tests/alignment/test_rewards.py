"""Rewards by name: verifiers, a user's file, a judge behind an endpoint."""

import http.server
import json
import threading

import pytest

from alignment import rewards
from inference.chat import Message

SUM = {"task": "arithmetic", "a": 3, "op": "+", "b": 4}
ASKED = [Message("user", "What is 3 + 4?")]


@pytest.mark.parametrize("answer, partial", [("3+4=7\n= 7", 1.0), ("3+4=7\n= 8", 0.25), ("seven", 0.0)])
def test_full_reward_is_for_meeting_every_constraint(answer, partial):
    assert rewards.make_reward("checks")([ASKED], [answer], [SUM]) == [float(partial == 1)]
    assert rewards.make_reward("partial")([ASKED], [answer], [SUM]) == [partial]


def test_a_reward_of_one_task_is_for_its_prompts_alone():
    assert [rewards.task_of(name) for name in ("stories", "arithmetic", "checks")] == [
        "stories",
        "arithmetic",
        None,
    ]


def test_an_unknown_task_in_a_check_is_named():
    with pytest.raises(ValueError, match="no verifier for the task 'chess'"):
        rewards.make_reward("checks")([ASKED], [""], [{"task": "chess"}])


@pytest.fixture
def endpoint():
    """Serve grades: the length of the answer, or what `reply` says; yields the URL and what was asked."""
    asked, reply = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            answer = body["messages"][-1]["content"].rpartition("\n")[2]
            content = reply[0] if reply else f"Grade: {len(answer)}"
            data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked, reply
    server.shutdown()
    server.server_close()


def test_a_judge_grades_each_answer(endpoint):
    url, asked, _ = endpoint
    found = rewards.make_reward(f"judge:{url}#wise")([ASKED] * 3, ["a", "bb", "cccc"], [{}] * 3)
    assert found == [0.1, 0.2, 0.4]
    assert {body["model"] for body in asked} == {"wise"}
    assert all("What is 3 + 4?" in body["messages"][-1]["content"] for body in asked)


def test_a_judge_that_gives_no_grade_is_refused(endpoint):
    url, _, reply = endpoint
    reply.append("Very nice!")
    with pytest.raises(ValueError, match="'Very nice!', which has no number"):
        rewards.make_reward(f"judge:{url}")([ASKED], ["a"], [{}])


def test_a_judge_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="does not answer"):
        rewards.make_reward("judge:http://127.0.0.1:9/v1")([ASKED], ["a"], [{}])
