"""How a Maya is published: cards made from its files, and the way to the Hub."""
