"""What it should take: the limit of a chip, and the constants of the plan's cost model."""
