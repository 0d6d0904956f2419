"""Policies: the actor-critic, its latent editor, the Q ensemble, and the files that they are stored in."""
