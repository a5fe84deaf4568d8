"""Reward functions that any verl job can use: format, accuracy and consistency, each alone; compose joins the first two."""
