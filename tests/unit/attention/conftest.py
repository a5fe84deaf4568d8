"""This file's folder goes on sys.path (pytest's rule for a conftest), for ``import attention_models``."""
