"""Networks: plain nn.Modules from images [B, 3, S, S] in [0, 1] to logits [B, 1] or [B, 2]."""
