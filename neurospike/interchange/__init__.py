"""Networks in files of other programs."""
