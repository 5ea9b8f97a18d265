"""A module that prints when it is imported."""

from my_lab.nets import Net

print("hello from the lab")  # noqa: T201 - what the test is about


class Printing(Net):
    """As the other one."""
