"""This file's folder goes on sys.path (pytest's rule for a conftest), so that tests may ``import tiny_models``."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other
