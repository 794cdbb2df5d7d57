"""An OpenAI-compatible server for a trained model: python -m serving RUN.

Read in this order: paged_cache (memory in pages), prefix_tree (pages that several texts share), scheduler (who is
computed in the next step), lookup (tokens guessed ahead), engine (a thread, and text), protocol (requests and answers),
http (the server).
"""
