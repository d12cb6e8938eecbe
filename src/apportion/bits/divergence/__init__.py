"""How far a model's predictions lie from another's: per token, as people who publish quantized models measure it.

reference = reference_of(staged, windows)            # full precision's last hidden states, kept once
summarize(divergence_of(reference, candidate))       # KL, same top token, change of the right token, perplexity
"""

from apportion.bits.divergence.measure import Reference, TokenDivergence, divergence_of, reference_of
from apportion.bits.divergence.summary import Divergence, summarize

__all__ = ["Divergence", "Reference", "TokenDivergence", "divergence_of", "reference_of", "summarize"]
