"""A whole study from one file: its stages planned, skipped where their result is stored, and run side by side."""
