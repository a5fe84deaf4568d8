"""R_cons for another verl job: the same pure functions that the CGRO trainer calls.

It is no ``custom_reward_function``: those see text only, and the Jaccard index comes from the actor's attention.

>>> from realad_verl.method.config import ConsistencyConfig
>>> consistency_score(0.8, label=1, well_formed=True)
1.0
>>> consistency_score(0.8, label=0, well_formed=True)
0.0
>>> consistency_score(0.8, label=1, well_formed=False)
0.0
>>> consistency_score(None, label=1, well_formed=True)
0.0
>>> consistency_score(0.75, label=1, well_formed=True, cfg=ConsistencyConfig(form="continuous"))
0.75
"""

from realad_verl.method.consistency import consistency_reward, consistency_score

__all__ = ["consistency_reward", "consistency_score"]
