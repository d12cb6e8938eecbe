"""What both halves stand on: errors, saved artifacts, seeds, devices, progress. Knows neither half."""
