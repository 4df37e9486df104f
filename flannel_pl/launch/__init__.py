"""Runs -> devices: who is trained where, and the processes that do it."""
