"""The launchers that come with the package: a module each, and nothing outside it names it."""
