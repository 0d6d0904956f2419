"""What acts: the actor-critic, its latent editor, and how they are stored."""
