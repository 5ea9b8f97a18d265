"""A package as a user has one, for the tests of the user's own code."""
