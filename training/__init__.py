"""From labelled text to an adapter: the tiny base of the local cloud, and what is trained on it."""
