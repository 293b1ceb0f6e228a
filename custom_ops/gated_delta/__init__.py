"""The gated delta rule: a decaying state per head, corrected towards each value along its key."""
