"""Commands of apportion.bits."""
