"""What the handlers share and what talks to AWS. The rules are in the domain package `loradrop`."""
