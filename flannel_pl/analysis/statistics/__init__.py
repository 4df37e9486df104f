"""What runs that differ in their seed only have in common: groups, curves, epochs, single numbers."""
