"""The methods, one idea a file, and the steps and projections that they share."""
