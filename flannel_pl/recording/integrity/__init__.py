"""Whether a file is as it was written: its header, and every row of every run in it."""
