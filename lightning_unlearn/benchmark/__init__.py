"""The benchmark: speed of everything, beside the machine's own limit and the environments' own vectorisation."""
