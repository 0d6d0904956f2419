"""How fast everything is, beside the machine's own limit and beside the environments' own vectorisation."""
