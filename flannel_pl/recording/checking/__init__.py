"""Whether what is there is what was written."""
