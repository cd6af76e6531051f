"""How a Maya is trained and evaluated: recipes, datasets, model, runs, evaluation, command line."""
