"""Multi-head latent attention over a paged cache of latents that it appends to in place."""
