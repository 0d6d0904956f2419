"""Write models, probes and evaluations in formats that other programs read."""
