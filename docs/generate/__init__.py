"""Pages of the site that are made when it is built, of the code and of files outside docs/."""
