"""Methods to set beside SCALL at the same bytes."""
