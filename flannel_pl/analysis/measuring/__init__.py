"""Runs become series: one number per row and metric, read a few rows at a time."""
