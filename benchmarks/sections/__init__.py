"""What is measured: one file for each section of a run, and the session that they share."""
