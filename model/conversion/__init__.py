"""Checkpoints in, checkpoints of another shape out: grouped-query attention becomes latent."""
