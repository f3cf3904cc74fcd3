"""How fast and how big, as ratios against a peer or the hand-written query, taken in one run."""
