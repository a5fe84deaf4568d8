"""Everything is in pyproject.toml but the packages: the recipes lie beside the package and ship inside it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["realad_verl*", "reward_fns*"]), "realad_verl.recipes"])
