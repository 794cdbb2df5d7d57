"""Corpora to token files to batches."""
