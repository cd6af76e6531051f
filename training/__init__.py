"""How a Maya is made and measured: recipes, trainer, data, evaluation."""
