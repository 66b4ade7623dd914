"""Detection that a scheduler calls: what is new is scored, judged once, and put beside what was there."""
