"""Recipes that make models: `target.train_target` and `anysubset.train_anysubset` from scratch, `ar.train_ar` distilled
from any target."""
