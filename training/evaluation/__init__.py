"""How good a student is, beside its teacher: measures, seeds, one report."""
