"""Numbers from one row of weights: pure functions of arrays."""
