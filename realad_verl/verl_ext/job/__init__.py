"""A run as processes: launched, watched, its parts and its progress."""
