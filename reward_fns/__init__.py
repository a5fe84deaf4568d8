"""Reward functions that any verl job can use: format, accuracy, consistency, each alone; compose joins two of them."""
