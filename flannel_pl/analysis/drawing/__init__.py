"""Figures: curves of groups of runs, and what draws them."""
