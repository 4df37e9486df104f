"""From a recording to understanding: metrics, epochs, comparison, report."""
