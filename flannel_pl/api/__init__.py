"""The verbs from Python: what a notebook or a script calls, and what it gets."""
