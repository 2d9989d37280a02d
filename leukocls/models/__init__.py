"""Networks: plain nn.Modules from images [B, 3, S, S] in [0, 1] to logits [B, 1] or [B, 2].

A network with `proposes_box = True` also returns the cell's box [B, 4].
"""
