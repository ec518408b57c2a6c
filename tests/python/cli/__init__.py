# A package, because pytest knows modules by name: others of `tests` have test_ledger and test_sweep too.
