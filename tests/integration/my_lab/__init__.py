"""A package of a user's own, as the tests trust it."""
