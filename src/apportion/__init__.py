"""Apportion fits a language model into the memory you have, and spends retrieval and reasoning only where needed."""
