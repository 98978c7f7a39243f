"""One run of the study: models, data, optimizers, HybridTrainer, checkpoints. Knows torch.

`NUMERICS` says which numbers the code computes. It is raised by hand when a change alters what a run computes, and by
nothing else: `tests/golden/` tells when that is. Records of another `NUMERICS` are stale.
"""

NUMERICS = 3
