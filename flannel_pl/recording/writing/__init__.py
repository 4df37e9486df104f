"""Rows on their way to the disk, and who may write there."""
