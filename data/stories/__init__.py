"""The built-in corpus: a grammar that writes short children's stories, and a checker that reads them.

Reading order: words (the lexicon), beats, plots and journeys (the plots), grammar (writes), then for the checker
reader (sentences and words), people (who is who) and checker (everything else).
"""

from data.stories.checker import check
from data.stories.grammar import coherence, corpus, stories, story

__all__ = ["check", "coherence", "corpus", "stories", "story"]
