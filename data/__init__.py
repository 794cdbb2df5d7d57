"""Corpora to token files to batches.

For training: tokenfile (what a prepared folder holds), sampler and batches (what train.py reads).
For preparing, which training never imports: sources (which documents), splitting (where one ends), clean, encode,
corpus (options, and which documents are for validation), parts (surviving interruptions), prepare (all of it).
info shows what token files hold; stories/ is the built-in corpus; web/ makes a corpus of web pages.
docs/data.md explains the whole, docs/web.md the last.
"""
