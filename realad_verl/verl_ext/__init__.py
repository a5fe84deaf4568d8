"""The only package that imports verl: plugin, CPU platform, engine, worker, trainers, launch.

Everything hooks into verl's own registries. What has no hook is patched, each patch in one place
(:mod:`realad_verl.verl_ext.patches`, :mod:`realad_verl.verl_ext.cpu`), asserting what it patches.
"""
