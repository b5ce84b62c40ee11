"""What is kept of a job: its row, its events, its pictures."""
