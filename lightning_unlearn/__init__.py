"""Targeted unlearning for control agents."""
