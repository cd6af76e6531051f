"""How Maya's datasets are built. Nothing here needs torch or the trainer."""
