"""Toxicity: images and texts judged by models, the verdicts kept, a policy applied to them."""
