"""The loss on the attention in verl's update: maps of the evidence pass, targets by group, rows with a gradient."""
