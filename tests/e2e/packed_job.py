"""Packed sequences on a CPU: loaded by each process of a job that imports verl (``VERL_USE_EXTERNAL_MODULES``).

The recipe asks for sdpa, which loads without flash-attn; the language model of each actor is then switched to the
reference kernel, which stands where transformers and verl look for flash-attn (tests/contract/flash_stand_in.py).
"""

from wrapt import register_post_import_hook


def with_the_reference_kernel(module) -> None:
    """Patch the engine classes of ``module`` (realad_verl.verl_ext.train.engine)."""
    from flash_stand_in import install, use_flash

    install()
    engine = module.EvidenceEngine
    original = engine._build_module

    def build(self):
        built = original(self)
        use_flash(built)
        return built

    engine._build_module = build


register_post_import_hook(with_the_reference_kernel, "realad_verl.verl_ext.train.engine")
