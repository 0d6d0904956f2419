"""Agents trained with other libraries: read safely, turned into policies, given a cost critic, registered."""
