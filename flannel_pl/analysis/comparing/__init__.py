"""The verb compare: where two recordings part, to the bit."""
