"""The mini dataset: emoji art in several styles, named by Unicode CLDR in ten languages."""
