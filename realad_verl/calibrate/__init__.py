"""``realad calibrate``: the read-out and the thresholds of CGRO for one backbone, chosen from image labels alone."""
