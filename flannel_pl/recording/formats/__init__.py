"""How a recording is stored: what a file says of itself, and one folder for each format."""
