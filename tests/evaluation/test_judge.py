"""The judge is asked as OpenAI's interface says, and whatever else a server answers is one clear error."""

import http.server
import json
import threading

import pytest

from evaluation import judge

GRADES = {"grammar": 8, "creativity": 5, "consistency": 9, "plot": 7}


@pytest.fixture
def server():
    """Serve chat completions on 127.0.0.1; `answer` is the text, `asked` what came."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            stub.asked.append((self.path, json.loads(body)))
            content = json.dumps(
                {"choices": [{"message": {"role": "assistant", "content": stub.answer}}]}
            ).encode()
            self.send_response(stub.status)
            self.end_headers()
            self.wfile.write(content if stub.status == 200 else b"no")

        def log_message(self, *_):
            pass

    stub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.asked, stub.answer, stub.status = [], json.dumps(GRADES), 200
    stub.url = f"http://127.0.0.1:{stub.server_port}/v1"
    thread = threading.Thread(target=stub.serve_forever)
    thread.start()
    yield stub
    stub.shutdown()
    stub.server_close()
    thread.join()


def test_grades_are_averaged(server):
    assert judge.grade_all(server.url, "big", ["One.", "Two."])["judge, consistency"] == 9
    path, body = server.asked[1]
    assert path == "/v1/chat/completions" and body["model"] == "big"
    assert body["messages"][0]["role"] == "user" and body["messages"][0]["content"].endswith("Two.")


NO_GRADES = ["I like it.", '{"grammar": 8}', json.dumps(GRADES | {"plot": 11}), "{}", '{"a": []}']


@pytest.mark.parametrize("answer", NO_GRADES)
def test_answers_without_grades_are_refused(server, answer):
    server.answer = answer
    with pytest.raises(ValueError, match="gave"):
        judge.grade(server.url, "big", "One.")


def test_a_server_that_fails_is_named(server):
    server.status = 500
    with pytest.raises(ConnectionError, match="500"):
        judge.grade(server.url, "big", "One.")
