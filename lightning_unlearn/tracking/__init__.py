"""All that knows MLflow: the store, runs, the model registry, checkpoints."""
