"""realad_verl: reasoning-driven anomaly detection and localization (ReAL) and its training (CGRO) on veRL.

Importing this package is cheap on purpose: it pulls in neither torch nor verl, so that plugins, command-line help and
shell completion start at once. Import what you need from the subpackages, e.g.
``from realad_verl.localize import Localizer``.
"""

__version__ = "0.1.0"
