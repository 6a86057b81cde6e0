"""How anything is measured: cases, problems, clocks, machines, and the file of what came out."""
