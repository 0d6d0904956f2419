"""What happens around an update: the multiplier, save points, the run's record, throughput and progress."""
