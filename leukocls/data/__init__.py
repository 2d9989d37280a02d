"""Images on disk, their index, splits, store and augmentation."""
