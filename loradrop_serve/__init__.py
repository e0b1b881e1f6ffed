"""`loradrop serve`: OpenAI's API in front of a stack's adapters, and a page to look at the stack."""
