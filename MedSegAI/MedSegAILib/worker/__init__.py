"""The background process that does the jobs, seen from Slicer."""
