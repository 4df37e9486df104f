"""Lightning's moments, its checkpoints, and why its trainings end."""
