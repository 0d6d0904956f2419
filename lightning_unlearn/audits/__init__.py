"""Questions asked of stored models."""
