"""Update rules, schedules, least-squares solvers, and what is known about the solution."""
