"""The benchmark behind `make bench`: the pipeline, its peers and the limit, in one run.

Not part of the product and never imported by it. One module per concern: `shape` (what the data
is), `data` and `server` (the source), `measure` and `worker` (one measurement, one process),
`project` and `peers` (what is measured), `compare` (equal results or no time), `budgets` (what
must be reached), `plan` (what runs when), `report` (table, JSON, page, plots).
"""
