"""Collected experience: rollouts, whole episodes, replay buffer, stored trajectories."""
