"""The small base models (vision tower, language model) that ship with the package, and their makers."""
