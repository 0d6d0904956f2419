"""Lightning callbacks: λ controller, measures of the expert, save points, MLflow record, progress."""
