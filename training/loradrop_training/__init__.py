"""From labelled text to a proven adapter."""
