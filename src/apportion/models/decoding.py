"""What attention runs on while texts grow by a token at a time."""

from torch.nn.attention import SDPBackend

# not cuDNN's, which torch prefers on an H100: it makes a plan for every new length, and steps of growing length took
# three times as long there
GROWING = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
