"""Tokens -> steps: the module, its data, the recorder, and how one run is trained."""
