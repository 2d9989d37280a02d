"""One run in this process, from its configuration to its record.

Nothing heavy is imported here: `PRELOADED` is read before torch is loaded.
"""

# Modules that the fork server imports once, so that no job pays for their imports again. Together
# they bring torch, Lightning and timm.
PRELOADED = ("leukocls.training.fit", "leukocls.training.rescore")
