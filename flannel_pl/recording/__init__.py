"""Steps <-> file: what a recording is, how it is written while training goes on, and how it is read."""
