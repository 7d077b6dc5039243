"""Capacity planning: what figures promise, simulated. Nothing here measures anything."""
