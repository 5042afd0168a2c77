"""Reports: one HTML page that needs nothing else, and its figures as PNG files beside it."""
