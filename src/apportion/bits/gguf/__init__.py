"""The GGUF file of a given size that loses least.

    source -> importance -> ladders -> bank -> prior (Fisher) -> measured search -> model.gguf

Every matrix is a player of its own, the embedding and the output head among them (one player where they are tied),
and each has a ladder of ggml's types. The value of a plan is the mean KL from the original's predictions.
"""
