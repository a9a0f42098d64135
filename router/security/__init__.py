"""Who may ask what of a router: keys, tokens, and what every route needs."""
