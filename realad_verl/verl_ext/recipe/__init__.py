"""A recipe before it runs: composed, checked, estimated; and the environment it would run in (doctor)."""
