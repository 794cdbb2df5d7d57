"""The lens: one HTML page that runs your model and shows what is inside it; docs/lens.md.

Reading order: export (a run becomes a payload), assemble (payload and page/ become one file), page/model.js.
"""
