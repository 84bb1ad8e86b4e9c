"""Compare competitors in one run on one machine: ``python -m benchmarks.<name>``.

Every benchmark prints a table of medians and ratios and writes ``benchmarks/out/<name>.json``,
``.md`` and ``.svg``. Ratios are comparable between machines, absolute numbers are not.
"""
