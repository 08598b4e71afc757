"""Keras's attention layers and function on Regard's kernels, with Keras's own signatures.

They run on every backend of Keras that Regard knows arrays of: TensorFlow, JAX, PyTorch and NumPy.
"""

from regard.keras.function import dot_product_attention
from regard.keras.multihead import GroupedQueryAttention, MultiHeadAttention
from regard.keras.single import AdditiveAttention, Attention

__all__ = [
    "AdditiveAttention",
    "Attention",
    "GroupedQueryAttention",
    "MultiHeadAttention",
    "dot_product_attention",
]
