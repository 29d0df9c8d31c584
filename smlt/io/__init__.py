"""Stores behind small protocols: foreign errors are translated once per backend."""
