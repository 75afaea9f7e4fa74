"""Coming from a grown estate: what was done, what enforcement would change, and the rows that follow from it."""
