"""Multi-token heads: a drafter that reads the target's own last hidden state (tensor decomposition, 2410.17765)."""
