"""The bpe room."""
