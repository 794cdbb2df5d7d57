"""The pictures of README and docs, each by a function that draws it: `python -m scripts.pictures`."""
