"""The textbook: each file is complete, runs by itself on a text file and imports nothing of the other rooms.

Reading order: bpe, ngram, gpt, train, sample. The tests hold the fast rooms against these files.
"""
