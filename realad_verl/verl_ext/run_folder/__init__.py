"""A run's files that the training processes and the launcher both read: heartbeat, checkpoints, cause of an end."""
