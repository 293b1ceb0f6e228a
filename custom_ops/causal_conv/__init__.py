"""Short causal convolution of each channel, which keeps its last inputs as state."""
