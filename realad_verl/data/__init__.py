"""Datasets (one file each), their preparation to parquet, procedural defects, the tiny backbone and the prompt."""
