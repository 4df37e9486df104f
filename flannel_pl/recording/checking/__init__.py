"""Whether everything of an experiment is there, right, and agrees."""
