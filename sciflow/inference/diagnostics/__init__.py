"""What shows whether posteriors are right: ranks, coverage, distances, classifiers, replicated data."""
