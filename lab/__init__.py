"""Machines that this one is not: each command here makes one, and runs our tests in it."""
