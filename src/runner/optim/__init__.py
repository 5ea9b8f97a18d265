"""Update rules, schedules, solvers, and what is known of the solution."""
