"""Which device and dtype a run uses, and why. Imports torch only when asked."""

from dataclasses import dataclass

from apportion.core.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, a compute dtype by name, and the reason for both."""

    device: str
    dtype: str
    reason: str


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Choose device and dtype; an automatic choice carries its reason.

    Raises:
        InputError: a device that is not here, or an unknown dtype.
    """
    import torch

    if dtype not in ("auto", *DTYPES):
        raise InputError(f"--dtype {dtype}: expected auto or one of {', '.join(DTYPES)}")
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
        reason = "a CUDA device is present" if has_cuda else "no CUDA device is present"
    else:
        reason = "asked for"
        if device.startswith("cuda") and not has_cuda:
            raise InputError(f"--device {device}: torch sees no CUDA device", "use --device cpu")
        try:
            torch.device(device)
        except RuntimeError as error:
            raise InputError(f"--device {device}: torch knows no such device", "use cpu or cuda") from error
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
        reason += f"; {dtype} is fastest there at the accuracy the game needs"
    return Placement(device, dtype, reason)
