"""The built-in corpus: a grammar that writes short children's stories, and a checker that reads them.

Read words.py (the lexicon), beats.py, plots.py and journeys.py (the plots), grammar.py (the writer), then checker.py.
"""

from data.stories.checker import check
from data.stories.grammar import coherence, corpus, stories, story

__all__ = ["check", "coherence", "corpus", "stories", "story"]
