"""act(x @ gate.T) * (x @ up.T), where both weights are rows of one packed weight."""
