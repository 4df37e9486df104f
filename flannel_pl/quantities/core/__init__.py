"""What records a run, whatever trains it: a loop over quantities. It needs torch only."""
