"""Mixture-of-experts feed-forward whose cost follows the experts that tokens are routed to."""
