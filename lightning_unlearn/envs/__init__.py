"""Environments, stepped E at a time, and the concepts that they report."""
