"""Training: text goes in, a small Hugging Face checkpoint directory comes out."""
