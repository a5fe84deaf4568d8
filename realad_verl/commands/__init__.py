"""One file a command of ``realad``. Heavy imports stand inside the functions, so that ``realad --help`` stays fast."""
