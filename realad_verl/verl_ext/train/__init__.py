"""What a training step passes through: dataset, agent loop, engine, worker, wire, trainer, metrics, samples."""
