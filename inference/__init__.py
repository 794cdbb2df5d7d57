"""A model and its tokenizer together: reading runs, generating text, scoring it, talking in turns."""
