"""Layers to build attention models from, in PyTorch: ordinary modules, whose attention shows."""

from regard.layers.additive import AdditiveAttention
from regard.layers.bilinear import BilinearAttention
from regard.layers.blocks import BlockWeights, DecoderBlock, EncoderBlock
from regard.layers.cache import KeyValueCache
from regard.layers.decoding import DecodingState
from regard.layers.distances import Alibi, RelativePositions
from regard.layers.feedforward import FeedForward
from regard.layers.memory import Memory
from regard.layers.multihead import MultiHeadAttention
from regard.layers.positions import LearnedPositions, SinusoidalPositions
from regard.layers.recurrent import RecurrentEncoderDecoder
from regard.layers.rotary import Rotary
from regard.layers.stacks import Decoder, Encoder
from regard.layers.transformer import Transformer

__all__ = [
    "AdditiveAttention",
    "Alibi",
    "BilinearAttention",
    "BlockWeights",
    "Decoder",
    "DecoderBlock",
    "DecodingState",
    "Encoder",
    "EncoderBlock",
    "FeedForward",
    "KeyValueCache",
    "LearnedPositions",
    "Memory",
    "MultiHeadAttention",
    "RecurrentEncoderDecoder",
    "RelativePositions",
    "Rotary",
    "SinusoidalPositions",
    "Transformer",
]
