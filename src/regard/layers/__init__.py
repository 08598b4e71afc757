"""Layers to build attention models from, in PyTorch: ordinary modules, whose attention shows."""

from regard.layers.additive import AdditiveAttention
from regard.layers.bilinear import BilinearAttention
from regard.layers.blocks import BlockWeights, DecoderBlock, EncoderBlock
from regard.layers.cache import KeyValueCache
from regard.layers.decoding import DecodingState
from regard.layers.feedforward import FeedForward
from regard.layers.memory import Memory
from regard.layers.multihead import MultiHeadAttention
from regard.layers.positions import LearnedPositions, SinusoidalPositions
from regard.layers.recurrent import RecurrentEncoderDecoder
from regard.layers.transformer import Transformer

__all__ = [
    "AdditiveAttention",
    "BilinearAttention",
    "BlockWeights",
    "DecoderBlock",
    "DecodingState",
    "EncoderBlock",
    "FeedForward",
    "KeyValueCache",
    "LearnedPositions",
    "Memory",
    "MultiHeadAttention",
    "RecurrentEncoderDecoder",
    "SinusoidalPositions",
    "Transformer",
]
