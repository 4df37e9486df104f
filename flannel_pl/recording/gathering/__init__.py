"""Finished runs become one recording."""
