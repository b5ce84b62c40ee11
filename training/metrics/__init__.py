"""Networks and scores that measure pictures."""
