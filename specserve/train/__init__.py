"""Recipes that make models: `target.train_target` from scratch, `ar.train_ar` distilled from any target."""
