"""y = x @ weight.T over weights in the checkpoint's own bytes: 16-bit or 32-bit floats."""
