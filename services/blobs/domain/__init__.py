"""What names, objects, conditions and ranges are: pure."""
