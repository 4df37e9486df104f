"""Arguments become a config, and verbs do something with it."""
