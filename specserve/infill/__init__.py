"""Infilling with any-subset models: given tokens stay, hidden positions are written in one joint law."""
