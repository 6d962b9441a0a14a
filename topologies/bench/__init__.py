"""`argosy bench`: rows that prove themselves, measured next to peers in one run.

Figures of different minutes on the same machine differ by a factor of two, so every figure here is compared
within its round only: each round measures a row and all its peers, one after the other, and what is
reported is the median of the rounds' ratios.
"""
