"""What a query makes of scores: fusion of rankings, formulas, averages of examples."""
