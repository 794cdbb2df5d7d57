"""What a trained model can do: held-out loss, minimal pairs, coherence, originality."""
