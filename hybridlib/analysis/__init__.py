"""From records to verdicts, and what several chapters share. It knows no torch."""
