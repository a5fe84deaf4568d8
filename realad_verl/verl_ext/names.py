"""The names under which this package registers with verl. Importing them activates nothing."""

ENGINE = "cgro_language_model"
AGENT_LOOP = "realad_agent"
SEEDED_AGENT_LOOP = "realad_seeded_agent"
# Keys of a sample's extra_fields and extra_info: how many tokens were cut from its response (train/agent_loop.py), and
# why its row stands in for another (train/dataset.py). The trainer counts both.
CUT = "realad_cut_tokens"
REPLACED = "realad_replaced"
TRAINERS = ("cgro_sync", "cgro_colocate_async", "cgro_separate_async")
# In AgentLoopOutput.multi_modal_data, which never leaves its process: what the processor made of the prompt's images.
FEATURES = "realad_features"
