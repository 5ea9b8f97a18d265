"""A laboratory's own package, which the tests trust."""
