"""Where data is born: environments, stepped E at a time."""
