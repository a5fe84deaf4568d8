"""``realad`` for jobs whose workers have the reference kernel in flash-attn's place (packed_job.py).

The recipe check has all rules but the one that packed sequences need flash attention.
"""

from realad_verl.verl_ext.recipe import check

check.PAIRS = tuple(rule for rule in check.PAIRS if rule.__name__ != "packing")

if __name__ == "__main__":
    from realad_verl.cli import main

    main()
