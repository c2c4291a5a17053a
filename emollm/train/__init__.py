"""Training: a plain loop, DeepSpeed around the model, checkpoints, and a thin Ray Train worker."""
