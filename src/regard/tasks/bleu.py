"""BLEU (Papineni et al., 2002) by sacrebleu, in the two ways in which Multi30k is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacremoses import MosesPunctNormalizer, MosesTokenizer

__all__ = ["figures", "lowercased_tokenised"]

_BINS = (1, 10, 15, 20)  # first lengths, in words of the source


def figures(
    sources: Sequence[str], answers: Sequence[str], references: Sequence[str], language: str
) -> dict[str, Any]:
    """Scores with their signatures: lower-cased and tokenised; as written; and by length.

    language: of the answers, "de" for instance.
    """
    plain = BLEU(tokenize="none", force=True)  # force: sacrebleu warns of text that is tokenised
    lowered = lowercased_tokenised(answers, language), lowercased_tokenised(references, language)
    return {
        "bleu_lowercased_tokenised": _score(plain, *lowered),
        "bleu_13a": _score(BLEU(), answers, references),
        "bleu_by_source_length": _by_length(plain, sources, *lowered),
    }


def lowercased_tokenised(texts: Sequence[str], language: str) -> list[str]:
    """As Multi30k's *.lc.norm.tok files were made: in small letters, normalised, in words."""
    normalise = MosesPunctNormalizer(language).normalize
    tokenise = MosesTokenizer(language).tokenize
    return [tokenise(normalise(text.lower()), return_str=True) for text in texts]


def _score(metric: BLEU, answers: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    score = metric.corpus_score(answers, [references])
    return {"score": round(score.score, 2), "signature": str(metric.get_signature())}


def _by_length(
    metric: BLEU, sources: Sequence[str], answers: Sequence[str], references: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for first, end in zip(_BINS, [*_BINS[1:], None], strict=True):
        chosen = [
            (answer, reference)
            for source, answer, reference in zip(sources, answers, references, strict=True)
            if first <= len(source.split()) < (end or 10**9)
        ]
        if chosen:
            words = f"{first}–{end - 1}" if end else f"{first} and more"
            score = _score(metric, *zip(*chosen, strict=True))["score"]
            rows.append({"words": words, "sentences": len(chosen), "bleu": score})
    return rows
