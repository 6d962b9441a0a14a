"""Mutation of tables: every cell of every table is changed once, and a test must fail each time.

    python -m tests.mutate                     all targets
    python -m tests.mutate --only personality  those whose name holds the word
    python -m tests.mutate --list              the mutants, without running any

`targets` lists the tables with the tests that hold them; `cells` reads a table's literal and makes the
mutants; `hook` imports a module with one cell changed, in memory; `runner` forks a warm process per mutant;
`campaign` puts them together.
"""
