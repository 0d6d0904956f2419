"""Agents trained with other libraries: read inertly, rebuilt as policies, given critics, registered."""
