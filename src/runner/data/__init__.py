"""From a source to rows on the device."""
