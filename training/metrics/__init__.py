"""Networks and scores for pictures."""
