"""For PyTorch programs: PyTorch's own attention, with its signatures, on Regard's kernels."""

from regard.torch.multihead import MultiheadAttention
from regard.torch.sdpa import scaled_dot_product_attention

__all__ = ["MultiheadAttention", "scaled_dot_product_attention"]
