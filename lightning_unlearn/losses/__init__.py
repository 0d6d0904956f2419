"""Pure tensor functions and losses: no logger, no trainer, no MLflow."""
