"""Data that needs no download: recall tasks made from a seed, and real text as bytes.

- :mod:`gatework.data.mqar`: multi-query associative recall; :mod:`~gatework.data.mqar_statistics` counts
  where its queries fall.
- :mod:`gatework.data.recall_variants`: compositional and forgetting recall;
  :mod:`gatework.data.continuous_recall`: recall on vectors.
- :mod:`gatework.data.counting`: parity and majority.
- :mod:`gatework.data.recall_mixture`: training and test segments, and their batches.
- :mod:`gatework.data.text`: a corpus of text in three splits, crops and windows of it.
- :mod:`gatework.data.ar_slices`: tokens that a context shows and training does not, and losses on them;
  :mod:`~gatework.data.bigram_counts` counts what training shows.
"""
