"""Networks: plain nn.Modules from images [B, 3, S, S] in [0, 1] to logits [B, 1] or [B, 2].

One with `proposes_box = True` gives the cell's box [B, 4] as well.
"""
