"""The names under which this package registers with verl. Importing them activates nothing."""

ENGINE = "cgro_language_model"
AGENT_LOOP = "realad_agent"
SEEDED_AGENT_LOOP = "realad_seeded_agent"
TRAINERS = ("cgro_sync", "cgro_colocate_async", "cgro_separate_async")
