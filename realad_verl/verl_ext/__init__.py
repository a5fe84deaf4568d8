"""The only package that imports verl, in rooms.

At the door: :mod:`.plugin` (what verl loads), :mod:`.settings` (the ``realad:`` section), :mod:`.names`. Then
:mod:`.train` (what a step passes through), :mod:`.repairs` (each patch of verl), :mod:`.recipe` (a recipe before it
runs), :mod:`.job` (a run as processes), :mod:`.run_folder` (what train and job both know of a run's files) and
:mod:`.cpu`. Everything hooks into verl's own registries; what has no hook is patched, each patch in a file of its own.
"""
