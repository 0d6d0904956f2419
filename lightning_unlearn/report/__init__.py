"""The report of an environment: one HTML file and its Markdown twin, from what the store holds."""
